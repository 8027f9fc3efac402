"""An engine whose rows run by the clock, each at a set speed whatever its neighbours do; and what its worker notes."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import orjson

from draftmill.engine.request import Completion
from draftmill.producer.queue.leases import UNKNOWN, Claimed, JobQueue, Pace
from draftmill.worker.worker import MillWorker
from tests.worker.set_speed_engine import Row, SetSpeedEngine

GLANCE = 0.05
"""Seconds after which a worker with a free row looks for jobs that have arrived, while other rows run."""
AT_MOST = 1.0
"""Seconds of a step, while all rows run."""

ASKING = 0.001
"""Seconds of a step, while a row waits for leave to start."""


class ClockEngine(SetSpeedEngine):
    """A row ends once the time for all its tokens is over, so that a worker costs no CPU while its rows run.

    `due` sums the seconds that rows should have taken, `late` those that they took longer, because this process did not
    get the CPU in time.
    """

    def __init__(self, max_rows: int, tokens_per_second: float) -> None:
        super().__init__(max_rows)
        self.tokens_per_second = tokens_per_second
        self.due = self.late = 0.0
        self._ends: dict[str, float] = {}
        self._generated = 0.0

    def step(self) -> list[Completion]:
        finished, self._ended = self._ended, []
        asking = not self._start_rows()
        if not self._rows:
            return finished
        begin = time.monotonic()
        longest = ASKING if asking else AT_MOST if len(self._rows) == self.max_rows else GLANCE
        time.sleep(max(0.0, min(longest, min(self._ends[id] for id in self._rows) - begin)))
        now = time.monotonic()
        self._count(now - begin)
        for id in [id for id in self._rows if self._ends[id] <= now]:
            self.late += now - self._ends.pop(id)
            finished.append(_completion(self._rows.pop(id)))
        return finished

    def _start_rows(self) -> bool:
        """Start as many as there is room for; False if they may not start yet."""
        starting = list(islice(self._waiting, self.max_rows - len(self._rows)))
        if starting and not self.may_start([request.id for request in starting]):
            return False
        for request in starting:
            self._waiting.popleft()
            seconds = request.sampling.max_tokens / self.tokens_per_second
            self.due += seconds
            self._rows[request.id] = Row(request)
            self._ends[request.id] = time.monotonic() + seconds
        return True

    def _count(self, seconds: float) -> None:
        """The rows have run for so long."""
        self._generated += len(self._rows) * seconds * self.tokens_per_second
        self.stats.generated_tokens = int(self._generated)
        self.stats.rounds += 1
        self.stats.rows += len(self._rows)


def _completion(row: Row) -> Completion:
    tokens = row.request.sampling.max_tokens
    return Completion(row.request.id, f"{tokens} words", (0,) * tokens, "length", len(row.request.tokens))


class TimedQueue(JobQueue):
    """Notes how long each claim took, in seconds."""

    def __init__(self, like: JobQueue) -> None:
        super().__init__(like.redis, like.worker, like.pair, like.lease)
        self.claims: list[float] = []

    def claim(self, n: int, ahead: int = 0, held: int = 0, pace: Pace = UNKNOWN) -> list[Claimed]:
        begin = time.perf_counter()
        found = super().claim(n, ahead, held, pace)
        self.claims.append(time.perf_counter() - begin)
        return found


def work_and_note(worker: MillWorker, engine: ClockEngine, folder: Path) -> bool:
    """Works until a signal, then writes down how long claims took and how late rows were."""
    queue = worker.courier.queue = TimedQueue(worker.queue)
    try:
        return worker.work()
    finally:
        notes = {"claims": queue.claims, "due": engine.due, "late": engine.late}
        (folder / f"{worker.name}.json").write_bytes(orjson.dumps(notes))
