"""Commands beside a Redis that is away for a while, or that comes back without its last second: nothing is lost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import orjson
import pytest
import redis as redis_py

from draftmill.producer.queue import batches, wire
from tests.farm.zygote import forked_worker
from tests.producer.cli.test_run import model as model  # the fixture
from tests.producer.conftest import Shell
from tests.redis_server import RedisServer, fresh_server
from tests.worker.run_worker import PAIR, Settings

AWAY_SECONDS = 13.0
"""Longer than the client itself tries again."""


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with fresh_server() as server:
        yield server


@pytest.fixture
def start_worker(redis_server: RedisServer) -> Iterator[Callable[..., None]]:
    with ExitStack() as stack:

        def start(rows: int, round_seconds: float) -> None:
            spool = str(redis_server.folder / "spool")
            stack.enter_context(forked_worker(Settings(redis_server.url, spool, rows, round_seconds)))

        yield start


def lines(count: int, tokens: int = 3) -> bytes:
    return b"".join(b'{"id": "r-%d", "prompt": "say %d", "max_tokens": %d}\n' % (n, n, tokens) for n in range(count))


def ids(shell: Shell, out: str) -> list[str]:
    return [orjson.loads(line)["custom_id"] for line in shell.lines(out)]


def wait_for(out: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_commands_outlive_a_redis_that_is_away(
    shell: Shell, redis_server: RedisServer, start_worker: Callable[..., None], model: str
) -> None:
    shell.environment["REDIS_URL"] = redis_server.url
    shell.write("in.jsonl", lines(40))
    shell.write("long.jsonl", lines(21_000, tokens=1))
    shell.write("run.jsonl", lines(1, tokens=3) + lines(1, tokens=3000).replace(b"r-0", b"r-1"))
    batch = shell("submit", "in.jsonl", "--pair", PAIR).stdout.strip()
    commands = {
        "collect": shell.start("collect", batch, "-o", "out.jsonl", "--follow"),
        "status": shell.start("status", batch, "--watch"),
        "submit": shell.start("submit", "long.jsonl", "--pair", PAIR),
    }
    waiting = commands["submit"].stderr
    assert waiting
    while "lines are queued" not in waiting.readline():
        assert commands["submit"].poll() is None
    options = ("-o", "run_out.jsonl", "--pair", model, "--drafts", "none")  # it is to run when Redis goes
    commands["run"] = shell.start("run", "run.jsonl", *options)
    wait_for(shell.folder / "run_out.jsonl", 1)
    redis_server.kill()
    time.sleep(AWAY_SECONDS)
    redis_server.start()
    start_worker(rows=64, round_seconds=0)
    for name, process in commands.items():
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, (name, error)
        assert "waiting for it\nRedis is back\n" in error, name
    assert sorted(ids(shell, "out.jsonl")) == sorted(f"r-{n}" for n in range(40))
    assert sorted(ids(shell, "run_out.jsonl")) == ["r-0", "r-1"]


def test_a_redis_without_its_last_second_doubles_no_line(
    shell: Shell, redis_server: RedisServer, start_worker: Callable[..., None]
) -> None:
    """The append-only file as it was some time before, though OUT has results since, which Redis was told."""
    shell.environment["REDIS_URL"] = redis_server.url
    shell.write("in.jsonl", lines(300, tokens=8))
    batch = shell("submit", "in.jsonl", "--pair", PAIR).stdout.strip()
    collecting = shell.start("collect", batch, "-o", "out.jsonl", "--follow")
    start_worker(rows=4, round_seconds=0.01)
    out, kept = shell.folder / "out.jsonl", redis_server.folder / "appendonlydir"
    wait_for(out, 30)
    shutil.copytree(kept, shell.folder / "before")
    wait_for(out, 150)
    redis_server.kill()
    shutil.rmtree(kept)
    shutil.copytree(shell.folder / "before", kept)
    redis_server.start()
    _, error = collecting.communicate(timeout=120)
    assert collecting.returncode == 0, error
    assert sorted(ids(shell, "out.jsonl")) == sorted(f"r-{n}" for n in range(300))
    with redis_server.connect() as redis:
        assert redis.xlen(wire.results_key(batch)) == 0
        state = batches.status(redis, batch)
        assert state
        assert state.collected


def test_a_redis_that_lost_everything_costs_out_nothing(shell: Shell, redis_server: RedisServer, model: str) -> None:
    """While `run` goes on: what is missing is queued anew."""
    shell.environment["REDIS_URL"] = redis_server.url
    short, long = b'"say 7", "max_tokens": 3', b'"say 7", "max_tokens": 3000'
    shell.write("in.jsonl", lines(30).replace(short, long))
    process = shell.start("run", "in.jsonl", "-o", "out.jsonl", "--pair", model)
    wait_for(shell.folder / "out.jsonl", 29)
    before = shell.lines("out.jsonl")
    with redis_py.Redis(unix_socket_path=str(redis_server.socket)) as redis:
        redis.flushall()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    after = shell.lines("out.jsonl")
    assert after[:29] == before
    assert sorted(ids(shell, "out.jsonl")) == sorted(f"r-{n}" for n in range(30))


def test_results_of_a_batch_that_redis_lost_are_acknowledged_in_vain(redis_server: RedisServer) -> None:
    """Nothing may look like a batch afterwards, or it would never be submitted again."""
    with redis_server.connect() as redis:
        batches.acknowledge(redis, "b", [batches.Result("1-1", b"{}", 1, "b-1")])
        assert batches.status(redis, "b") is None
        assert redis.keys() == []
