"""What tests of schedules share: the command line with a schedule, and schedulers as processes."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis as redis_py

from draftmill.producer.cli.cron import check_arguments
from draftmill.producer.client.submission import plan
from draftmill.producer.cron import entries
from draftmill.producer.cron.schedule import LONGEST_MS, Schedule
from draftmill.producer.input.dataset import Dataset
from draftmill.producer.input.lines import Defaults
from draftmill.producer.queue import batches
from draftmill.producer.queue import schedules as store
from draftmill.producer.queue.connect import login
from draftmill.producer.queue.schedules import Ended, Slot
from tests.producer.conftest import Shell
from tests.redis_server import RedisServer
from tests.worker.run_worker import PAIR

LINE = '{"id": "a", "prompt": "say it", "max_tokens": 2}\n'
YEAR = LONGEST_MS  # so that hardly ever a second slot comes in the middle of a test


@dataclass
class Cron:
    """The command line, one schedule named `tick` that submits in.jsonl, and schedulers."""

    shell: Shell
    redis: redis_py.Redis
    url: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.shell("cron", *arguments, "--redis-url", self.url)

    def add(self, **given: Any) -> int:
        """Keeps `tick` as `cron add` does; returns its first slot."""
        self.shell.write("in.jsonl", LINE)
        arguments = ("in.jsonl", "--pair", PAIR)
        return entries.add(self.redis, Schedule.model_validate({"name": "tick", "arguments": arguments} | given))

    def start(self, *options: str, urls: Sequence[str] = (), out_urls: Sequence[str] = ()) -> subprocess.Popen[str]:
        own = [f"--urls={url}" for url in urls] + [f"--out-urls={url}" for url in out_urls]
        process = self.shell.start(*options, "cron", "run", "--lease", "2", "--redis-url", self.url, *own)
        self.processes.append(process)
        return process

    def start_now(self, **given: Any) -> tuple[subprocess.Popen[str], int]:
        """A scheduler, and a slot of `tick` that it finds due."""
        slot = self.add(every_ms=YEAR, **given) - YEAR
        self.redis.zadd(store.NEXT, {"tick": slot})
        return self.start(), slot

    def stop(self, process: subprocess.Popen[str]) -> str:
        """Stops an idle scheduler; returns what it said."""
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0, said
        return said

    def found(self) -> dict[str, batches.BatchStatus]:
        return {batch.id: batch for batch in batches.list_batches(self.redis)}

    def batch_of(self, at: int) -> str:
        """The batch that a slot of `tick` must be."""
        dataset = Dataset(str(self.shell.folder / "in.jsonl"), PAIR, Defaults())
        return plan(dataset, dataset.survey(str(Slot("tick", at))), login()).info.id

    def last(self) -> Ended | None:
        return entries.read(self.redis, check_arguments).entries["tick"].last


@pytest.fixture
def cron(shell: Shell, redis: redis_py.Redis, redis_server: RedisServer) -> Iterator[Cron]:
    cron = Cron(shell, redis, redis_server.url)
    yield cron
    for process in cron.processes:
        process.kill()
        process.communicate()


def wait(until: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)
