"""The thread that tells Redis which jobs are in a row, before they run."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from queue import SimpleQueue

import redis as redis_py

from ..producer.queue.leases import Claimed, JobQueue
from .jobs import Running

PATIENCE = 0.5
"""Seconds after which a Redis that has not answered holds nobody up."""


@dataclass
class Note:
    """What Redis is being told: of each job whether it is in a row."""

    told: list[tuple[Running, Claimed, bool]]
    answer: Future[None] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Witness(threading.Thread):
    """Has a connection of its own, so that the engine neither waits for other commands nor for a Redis that is away."""

    def __init__(self, queue: JobQueue) -> None:
        super().__init__(name="witness", daemon=True)
        self._queue = queue
        self._asked: SimpleQueue[Note] = SimpleQueue()
        self._owed: Note | None = None
        self._away = False

    def keep_up(self, running: Collection[Running]) -> bool:
        """Let Redis know which jobs are in a row and which only wait: should this worker die, those are to blame.

        Waits for no answer, and tells nothing while one is owed. Returns whether Redis knows all, or does not answer.
        """
        self._hear()
        if not self._owed and (changed := [job for job in running if job.counts is not job.in_row]):
            self._owed = Note([(job, job.job, job.in_row) for job in changed])
            self._asked.put(self._owed)
        return not self._owed or self._away

    def wait(self) -> None:
        """Until there is an answer, or Redis has had the time for it."""
        if self._owed:
            wait([self._owed.answer], PATIENCE)

    def _hear(self) -> None:
        """Take the answer, if it is there."""
        if not (owed := self._owed):
            return
        if owed.answer.done():
            self._owed, self._away = None, owed.answer.exception() is not None
            for running, job, in_row in owed.told:
                if running.job is job:  # else it was leased anew
                    running.counts = None if self._away else in_row
        elif time.monotonic() > owed.since + PATIENCE:
            self._away = True

    def run(self) -> None:
        while True:
            note = self._asked.get()
            starting = [job for _, job, in_row in note.told if in_row]
            waiting = [job for _, job, in_row in note.told if not in_row]
            try:
                self._queue.blame(starting, waiting)
            except redis_py.RedisError as error:  # the courier says what is wrong with Redis
                note.answer.set_exception(error)
            else:
                note.answer.set_result(None)
