"""The thread that tells Redis which jobs are in a row, before they run."""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from queue import SimpleQueue

import redis as redis_py

from ..producer.queue.leases import Claimed, JobQueue
from .jobs import Running

PATIENCE = 0.5
"""Seconds that the engine may wait for Redis to answer."""


class Witness(threading.Thread):
    """Has a connection of its own, so that the engine neither waits for other commands nor for a Redis that is away."""

    def __init__(self, queue: JobQueue) -> None:
        super().__init__(name="witness", daemon=True)
        self._queue = queue
        self._asked: SimpleQueue[tuple[Future[None], list[Claimed], list[Claimed]]] = SimpleQueue()
        self._last: Future[None] = Future()
        self._last.set_result(None)

    def keep_up(self, running: Collection[Running]) -> None:
        """Let Redis know which jobs are in a row and which only wait: should this worker die, those are to blame."""
        starting = [job for job in running if job.in_row and not job.counts]
        waiting = [job for job in running if not job.in_row and job.counts is not False]
        if starting or waiting:
            told = self._tell([each.job for each in starting], [each.job for each in waiting])
            for job in (*starting, *waiting):
                job.counts = job.in_row if told else None

    def _tell(self, starting: list[Claimed], waiting: list[Claimed]) -> bool:
        """Whether Redis knows now; asks nothing while it owes an earlier answer."""
        if not self._last.done():
            return False
        self._last = Future()
        self._asked.put((self._last, starting, waiting))
        try:
            self._last.result(PATIENCE)
        except (Late, redis_py.RedisError):  # the courier says what is wrong with Redis
            return False
        return True

    def run(self) -> None:
        while True:
            answer, starting, waiting = self._asked.get()
            try:
                self._queue.blame(starting, waiting)
            except redis_py.RedisError as error:
                answer.set_exception(error)
            else:
                answer.set_result(None)
