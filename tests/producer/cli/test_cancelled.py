"""Batches that were cancelled: they end without workers."""

from __future__ import annotations

import time
from pathlib import Path

import orjson
import pytest
import redis as redis_py

from draftmill.producer.queue.leases import JobQueue
from tests.producer.conftest import Shell
from tests.redis_server import RedisServer
from tests.worker.run_worker import PAIR


def write_prompts(shell: Shell, count: int) -> str:
    lines = (orjson.dumps({"id": f"r-{n}", "prompt": "say it", "max_tokens": 3}) for n in range(count))
    return shell.write("in.jsonl", b"\n".join(lines))


@pytest.fixture
def batch(redis: redis_py.Redis, redis_server: RedisServer, shell: Shell) -> str:
    """A batch of ten lines, two of which are in leases of a worker that died just now; then it was cancelled."""
    shell.environment["REDIS_URL"] = redis_server.url
    batch = shell("submit", write_prompts(shell, 10), "--pair", PAIR).stdout.strip()
    assert len(JobQueue(redis, "dead", PAIR, lease=4).claim(2)) == 2
    assert shell("cancel", batch).stdout == "Cancelled 8 queued lines; running ones end within seconds\n"
    return batch


def test_a_cancelled_batch_whose_worker_died_ends_for_who_follows_it(shell: Shell, batch: str) -> None:
    collected = shell("collect", batch, "-o", "out.jsonl", "--follow")
    assert (collected.returncode, Path(shell.folder, "out.jsonl").read_bytes()) == (4, b"")
    codes = [orjson.loads(line)["error"]["code"] for line in shell.lines("out.jsonl.errors.jsonl")]
    assert codes == ["batch_cancelled"] * 10


def test_a_cancelled_batch_whose_worker_died_ends_for_who_watches_or_forgets_it(shell: Shell, batch: str) -> None:
    early = shell("forget", batch)
    assert (early.returncode, early.stderr) == (
        2,
        f"Error: {batch} is cancelled, but lines of it still run; they end soon, so run the same command again\n",
    )
    watched = shell("status", batch, "--watch")
    assert "0 done, 0 failed, 10 cancelled" in watched.stdout
    assert shell("forget", batch).stdout == f"Forgot {batch}\n"


def test_forget_alone_ends_what_was_cancelled(shell: Shell, batch: str) -> None:
    time.sleep(4)
    assert shell("forget", batch).stdout == f"Forgot {batch}\n"
