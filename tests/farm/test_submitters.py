"""Submitters and collectors beside a Redis in trouble: one line, exit code 3, and the same command goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
import redis as redis_py

from tests.farm.zygote import forked_worker
from tests.producer.conftest import Shell
from tests.redis_server import RedisServer, fresh_server
from tests.worker.run_worker import PAIR, Settings

LINES = 600


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with fresh_server() as server:
        yield server


@pytest.fixture
def shell(tmp_path: Path, redis_server: RedisServer) -> Shell:
    shell = Shell(tmp_path, tmp_path)
    shell.environment["REDIS_URL"] = redis_server.url
    lines = [orjson.dumps({"id": f"r-{n}", "prompt": f"say {n}", "max_tokens": 2}) for n in range(LINES)]
    shell.write("in.jsonl", b"\n".join(lines))
    return shell


def out_of_memory(redis: redis_py.Redis) -> Callable[[], object]:
    redis.config_set("maxmemory", 1_000_000)
    return lambda: redis.config_set("maxmemory", 0)


def read_only(redis: redis_py.Redis) -> Callable[[], object]:
    redis.replicaof("127.0.0.1", "1")
    return lambda: redis.replicaof("NO", "ONE")


@pytest.mark.parametrize(
    ("trouble", "says"), [(out_of_memory, "is out of memory; raise its maxmemory"), (read_only, "is read-only")]
)
def test_trouble_is_one_line_and_the_same_command_goes_on(
    shell: Shell, redis_server: RedisServer, trouble: Callable[[redis_py.Redis], Callable[[], object]], says: str
) -> None:
    with redis_server.connect() as redis:
        heal = trouble(redis)
        failed = shell("submit", "in.jsonl", "--pair", PAIR)
        assert failed.returncode == 3
        assert says in failed.stderr.splitlines()[-1]
        assert "Traceback" not in failed.stderr
        heal()
    batch = shell("submit", "in.jsonl", "--pair", PAIR).stdout.strip()
    with forked_worker(Settings(redis_server.url, str(redis_server.folder / "spool"), rows=32, round_seconds=0)):
        collected = shell("collect", batch, "-o", "out.jsonl", "--follow")
    assert collected.returncode == 0, collected.stderr
    ids = [orjson.loads(line)["custom_id"] for line in shell.lines("out.jsonl")]
    assert sorted(ids) == sorted(f"r-{n}" for n in range(LINES))
