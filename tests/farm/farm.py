"""A farm for the fault suite: a real server, workers that can be killed, and an account of what became of a batch."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import redis as redis_py

from draftmill.producer.queue import batches, wire
from tests.farm.zygote import Zygote, shared_zygote
from tests.redis_server import RedisServer
from tests.worker.run_worker import PAIR, Settings

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Account:
    """Of a batch that was waited for: lines without a completion, lines with several, what never ended, and with which
    codes lines failed.
    """

    lines: int
    lost: int
    duplicated: int
    stuck: int
    failures: Mapping[str, int]

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.stuck)

    def __str__(self) -> str:
        reasons = "".join(f" ({count} failed: {code})" for code, count in self.failures.items())
        return f"{self.lost} lost{reasons}, {self.duplicated} duplicated, {self.stuck} stuck of {self.lines:,}"


class Farm:
    """A context manager. Its workers are forked from a process that has imported everything; all farms share one, but
    for workers with an environment of their own.
    """

    def __init__(self, *options: str, rows: int = 2, round_seconds: float = 0.005, lease: float = 2.0) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp")
        self.folder = Path(self._folder.name)
        self.server = RedisServer(self.folder, *options)
        self.server.start()
        self.redis = self.server.connect()
        self.log = self.folder / "workers.log"
        self.log.touch()
        self.settings = Settings(self.server.url, str(self.folder / "spool"), rows, round_seconds, lease)
        self.workers: list[int] = []
        self._zygote: Zygote | None = None
        self._own: list[Zygote] = []

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.workers:
            self.signal(pid, signal.SIGCONT)
            self.signal(pid, signal.SIGKILL)
        for zygote in self._own:
            zygote.end()
        self.server.kill()
        self._folder.cleanup()

    def start(self, **changes: Any) -> int:
        """Starts a worker and returns its process id."""
        pid = (self._zygote or shared_zygote()).start(replace(self.settings, **changes), self.log)
        self.workers.append(pid)
        return pid

    def shift_clocks(self, library: Path, seconds: int) -> None:
        """The workers that start from now on have clocks that are wrong by so much."""
        self.work_in({"LD_PRELOAD": str(library), "SHIFTED_BY": str(seconds)})

    def work_in(self, environment: dict[str, str]) -> None:
        """The workers that start from now on have these environment variables besides."""
        self._zygote = Zygote(environment) if environment else None
        self._own += filter(None, [self._zygote])

    def said(self) -> str:
        """What all workers have logged."""
        return self.log.read_text("utf-8", "replace")

    def signal(self, pid: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def kill(self, pid: int) -> None:
        """Ends a worker as by kill -9, and waits until it is gone."""
        self.signal(pid, signal.SIGKILL)
        while self.alive(pid):
            time.sleep(0.002)
        self.workers.remove(pid)

    def stop(self, pid: int) -> None:
        """Ends a worker by SIGTERM, and waits until it is gone; before, it has time to reap."""
        time.sleep(2 * self.settings.lease)
        self.signal(pid, signal.SIGTERM)
        while self.alive(pid):
            time.sleep(0.01)
        self.workers.remove(pid)

    def alive(self, pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    def submit(
        self,
        count: int,
        batch: str = "b",
        tokens: int = 6,
        prompt: Callable[[int], str] | None = None,
        after: int = 0,
        user: str = "",
    ) -> None:
        """Submits the lines r-0 … of a batch of `count`, but for those `after` that have been submitted before."""
        info = batches.BatchInfo(batch, PAIR, "normal", count, "soak", user)
        batches.create(self.redis, info)
        sampling = wire.Sampling(max_tokens=tokens)
        for first in range(after, count, 500):
            bodies = [
                wire.JobBody(
                    batch=batch,
                    custom_id=f"r-{n}",
                    pair=PAIR,
                    prompts=(prompt(n) if prompt else "say it",),
                    sampling=sampling,
                    line=n + 1,
                )
                for n in range(first, min(first + 500, count))
            ]
            batches.submit_chunk(self.redis, info, bodies)

    def status(self, batch: str = "b") -> batches.BatchStatus:
        found = batches.status(self.redis, batch)
        assert found
        return found

    def wait(self, until: Callable[[], bool], seconds: float) -> bool:
        """Waits for `until`; False if it did not come true in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(redis_py.RedisError):
                if until():
                    return True
            time.sleep(0.05)
        return False

    def account(self, count: int, batch: str = "b", seconds: float = 60) -> Account:
        """Waits until the batch is complete and settles what became of its lines."""
        self.wait(lambda: self.status(batch).complete, seconds)
        lines = [orjson.loads(result.line) for result in batches.results(self.redis, batch)]
        done = {line["custom_id"] for line in lines if line["error"] is None}
        twice = len(lines) - len({line["custom_id"] for line in lines})
        failures = Counter(line["error"]["code"] for line in lines if line["error"])
        return Account(count, count - len(done), twice, self._stuck(batch), failures)

    def _stuck(self, batch: str) -> int:
        """Lines without an end, and leases and queue entries that are left over."""
        status = self.status(batch)
        with self.redis.pipeline() as pipe:
            pipe.zcard(wire.LATER)
            pipe.hlen(wire.open_key(batch))
            pipe.llen(wire.alone_key(PAIR))
            pipe.llen(f"rq:queue:{wire.queue_name(PAIR, batch)}")
            pipe.zcard(wire.leased_key(wire.queue_name(PAIR, batch)))
            left = pipe.execute()
        return max(0, status.total - status.ended) + status.running + sum(left)
