"""Workers that kill themselves, as by kill -9, at the boundary between two steps of a job's life."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from draftmill.producer.queue import leases, scripts
from draftmill.producer.queue.leases import UNKNOWN, Claimed, JobQueue, Outcome, Pace
from draftmill.worker.worker import MillWorker
from tests.worker.set_speed_engine import SetSpeedEngine

STEPS = {
    "pop": "the jobs are leased in Redis, the reply never read",
    "claim": "the jobs have arrived, none is in the engine",
    "step": "rows are in the middle of their tokens",
    "before commit": "outcomes are finished, Redis knows nothing",
    "after commit": "outcomes are recorded, the reply never read",
}


class CrashingQueue(JobQueue):
    """Calls `fuse` at each boundary, with its name."""

    def __init__(self, like: JobQueue, fuse: Callable[[str], None]) -> None:
        super().__init__(like.redis, like.worker, like.pair, like.lease)
        self.fuse = fuse
        self.unread = False

    def claim(self, n: int, ahead: int = 0, held: int = 0, pace: Pace = UNKNOWN) -> list[Claimed]:
        found = super().claim(n, ahead, held, pace)
        if found:
            self.fuse("claim")
        return found

    def commit(self, outcomes: Sequence[Outcome]) -> list[Any]:
        self.fuse("before commit")
        replies = super().commit(outcomes)
        self.fuse("after commit")
        return replies

    def _run(self, script: scripts.Script, *arguments: Any) -> Any:
        if script is leases.CLAIM and self.unread:
            connection = self.redis.connection_pool.get_connection()
            connection.send_command("EVAL", script.text, 0, scripts.rq_now(), "1209600", *arguments)
            self.fuse("pop")
        return super()._run(script, *arguments)


def crash_at(worker: MillWorker, step: str, after: int) -> None:
    """Lets `worker` kill its process when it reaches `step` for the `after`th time."""
    left = after

    def fuse(reached: str) -> None:
        nonlocal left
        if reached == step:
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    crashing = CrashingQueue(worker.queue, fuse)
    crashing.unread = step == "pop"
    worker.courier.queue = crashing
    assert isinstance(worker.engine, SetSpeedEngine)
    worker.engine.before_round = lambda: fuse("step")
