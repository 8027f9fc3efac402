"""Fixtures of the worker's tests: a server of their own, a client of it, and worker processes."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
import redis as redis_py

from draftmill.producer.queue import batches, wire
from tests.redis_server import RedisServer, fresh_server
from tests.worker.run_worker import PAIR, Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with fresh_server() as server:
        yield server


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[redis_py.Redis]:
    with redis_server.connect() as client:
        yield client


class Mill:
    """One batch and the worker processes that run it."""

    def __init__(self, server: RedisServer, redis: redis_py.Redis) -> None:
        self.server = server
        self.redis = redis
        self.processes: list[subprocess.Popen[str]] = []
        self.spool = server.folder / "spool"

    def submit(
        self,
        count: int,
        tokens: int = 10,
        batch: str = "b",
        priority: str = "normal",
        prompt: str = "say it",
        user: str = "",
        max_seconds: float | None = None,
    ) -> batches.Submitted:
        """Submits lines r-0 … of a batch of `count`."""
        info = batches.BatchInfo(batch, PAIR, priority, count, "test.jsonl", user)
        sampling = wire.Sampling(max_tokens=tokens, max_seconds=max_seconds)
        bodies = [
            wire.JobBody(batch=batch, custom_id=f"r-{n}", pair=PAIR, prompts=(prompt,), sampling=sampling, line=n + 1)
            for n in range(count)
        ]
        batches.create(self.redis, info)
        return batches.submit_chunk(self.redis, info, bodies)

    def start(
        self, rows: int = 8, round_seconds: float = 0.005, lease: float = 2, drain: float = 60
    ) -> subprocess.Popen[str]:
        """Starts a worker process and waits until it is about to claim."""
        settings = Settings(self.server.url, str(self.spool), rows, round_seconds, lease, drain)
        process = subprocess.Popen(
            settings.command(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        return process

    def status(self, batch: str = "b") -> batches.BatchStatus:
        found = batches.status(self.redis, batch)
        assert found
        return found

    def wait(self, until: Callable[[batches.BatchStatus], bool], seconds: float = 60, batch: str = "b") -> None:
        """Waits until the batch's status satisfies `until`."""
        deadline = time.monotonic() + seconds
        while not until(self.status(batch)):
            assert time.monotonic() < deadline, self.status(batch)
            time.sleep(0.02)

    def wait_for_rows(self, count: int, batch: str = "b", seconds: float = 60) -> None:
        """Waits until Redis knows of the jobs r-0 … r-{count - 1} that they are in a row, and so may go away."""
        keys = [f"rq:job:{wire.job_id(batch, f'r-{n}')}" for n in range(count)]
        deadline = time.monotonic() + seconds
        while not all(self.redis.hexists(key, "leases") for key in keys):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def lines(self, batch: str = "b") -> dict[str, dict]:
        """The batch's output lines by custom_id; each custom_id has one."""
        lines = [orjson.loads(result.line) for result in batches.results(self.redis, batch)]
        by_id = {line["custom_id"]: line for line in lines}
        assert len(by_id) == len(lines)
        return by_id

    def stop(self, process: subprocess.Popen[str], sig: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Sends a signal and waits for the end; returns exit code and what was logged."""
        process.send_signal(sig)
        _, logged = process.communicate(timeout=15)
        return process.returncode, logged


@pytest.fixture
def mill(redis_server: RedisServer, redis: redis_py.Redis) -> Iterator[Mill]:
    mill = Mill(redis_server, redis)
    yield mill
    for process in mill.processes:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()
