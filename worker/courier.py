"""The threads that talk to Redis while the engine runs: one fetches jobs and delivers outcomes, one waits for jobs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import redis as redis_py

from ..producer.queue.errors import denied, redis_trouble
from ..producer.queue.leases import Claimed, JobQueue, Outcome
from .host import RowSpeed
from .metrics.metrics import Metrics
from .spool import Spool

log = logging.getLogger("draftmill.worker")

SOON, LATER = 0.05, 1.0
"""Seconds until the next look at the queue: after one that found jobs, and while only rows that are taken could have
more waiting behind them."""
GATHER_SECONDS = 0.02
"""How long an outcome waits for others while all rows are taken, for jobs end one by one."""
LISTEN_SECONDS = 3.0
"""For how long a worker with a free row waits to be called before it looks by itself whether there are jobs: they can
become ready without a call, as when a limit is raised or `rq resume` is run."""
CLAIM_SECONDS = 30.0
"""After this long it claims, whatever that look says."""
FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 10.0
"""Seconds until the next attempt when Redis does not answer."""
STATES = ("OOM", "MISCONF", "READONLY", "LOADING", "BUSY", "MASTERDOWN", "NOREPLICAS", "NOAUTH", "WRONGPASS")
"""Answers of Redis that speak of itself, not of what it was asked to do."""
MOST_AT_ONCE = 64
"""Outcomes in one round trip."""


def passes(error: redis_py.RedisError) -> bool:
    """Whether trying again may help: Redis is away, full, read-only or loading, or its operator must act."""
    if not isinstance(error, redis_py.ResponseError) or denied(error):
        return True
    return any(state in str(error) for state in STATES)


class Listener(threading.Thread):
    """Waits for Redis to call this worker, on a connection of its own, while `wants` is set.

    Args:
        heard: called when it is time to look for jobs; then it waits until `wants` is set again.
    """

    def __init__(self, queue: JobQueue, heard: Callable[[], None]) -> None:
        super().__init__(name="listener", daemon=True)
        self._queue, self._heard = queue, heard
        self.wants = threading.Event()

    def run(self) -> None:
        while True:
            self.wants.wait()
            try:
                if self._is_called() and not self.wants.is_set():
                    self._queue.pass_on()
            except redis_py.RedisError:  # the courier says so when it looks
                self.wants.clear()
                time.sleep(FIRST_BACKOFF)
            self.wants.clear()
            self._heard()

    def _is_called(self) -> bool:
        """Wait until it is time to look for jobs: True if Redis called, False if there may be some all the same."""
        while not (called := self._queue.wait(LISTEN_SECONDS)):
            if not self.wants.is_set() or self._queue.may_have_jobs():
                break
        return called


class Courier(threading.Thread):
    """Keeps outcomes until Redis has them, and jobs until the worker takes them.

    A failing Redis costs time, never a result: undelivered outcomes stay here and on disk, and are sent again.
    """

    def __init__(self, queue: JobQueue, metrics: Metrics, spool: Spool, speed: RowSpeed) -> None:
        super().__init__(name="courier", daemon=True)
        self.queue = queue
        self.metrics = metrics
        self.spool = spool
        self.speed = speed
        self.arrived = threading.Event()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._aborted = threading.Event()
        self._listener = Listener(queue, self._wake.set)
        self._room = self._ahead = 0
        self._unread: list[Claimed] = []
        self._jobs: list[Claimed] = []
        self._fresh: list[Outcome] = []
        self._outcomes = spool.adopt()
        if self._outcomes:
            log.warning("sending %d results of a worker that ended before Redis had them", len(self._outcomes))
        self._held: dict[str, Claimed] = {}

    # The worker's side.

    def exchange(self, room: int, ahead: int) -> list[Claimed]:
        """Take the jobs that have arrived; the courier may fetch more until there are `room` of them in all.

        The last `ahead` of that room are for jobs that will wait for a row.
        """
        with self._lock:
            jobs, self._jobs = self._jobs, []
            room = max(0, room - len(jobs) - len(self._unread))
            more, self._room, self._ahead = room > self._room, room, ahead
            self.arrived.clear()
        if more:
            self._wake.set()
        return jobs

    def deliver(self, outcomes: Sequence[Outcome]) -> None:
        """Record these outcomes as soon as Redis allows."""
        with self._lock:
            self._fresh += outcomes
        self.metrics.commits_pending.set(self.pending)
        self._wake.set()

    def forget(self, job: Claimed) -> None:
        """Stop renewing the lease of a job that is no longer this worker's."""
        with self._lock:
            if self._held.get(job.id) is job:
                del self._held[job.id]

    def held(self) -> list[Claimed]:
        """Every job that this worker has claimed and whose outcome is not recorded."""
        with self._lock:
            return list(self._held.values())

    def close(self) -> None:
        """Claim nothing more; the thread ends once all outcomes are recorded."""
        self._closing.set()
        self._wake.set()

    def abort(self) -> None:
        """End the thread after what it is doing now."""
        self._aborted.set()
        self.close()

    # The thread's side.

    def run(self) -> None:
        self._listener.start()
        backoff = FIRST_BACKOFF
        while not self._aborted.is_set():
            self._wake.clear()
            try:
                self.flush()
                found = self._claim()
            except redis_py.RedisError as error:
                self.metrics.redis_errors.inc()
                log.warning(
                    "%s; trying again in %d s, %d results wait here", redis_trouble(error), backoff, self.pending
                )
                self._aborted.wait(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF)
                continue
            backoff = FIRST_BACKOFF
            if self._closing.is_set() and not self.pending:
                return
            self._rest(found)

    def _rest(self, found: bool) -> None:
        """Wait until there is something to do: an outcome, more room, or jobs."""
        if found:
            self._wake.wait(SOON)
        elif self.queue.passed:  # calls are for faster workers
            self._wake.wait(LISTEN_SECONDS)
        elif self._has_free_row:
            self._listener.wants.set()
            self._wake.wait(CLAIM_SECONDS)
            self._listener.wants.clear()
        else:
            self._wake.wait(LATER)
        if not self._has_free_row:
            self._closing.wait(GATHER_SECONDS)

    @property
    def _has_free_row(self) -> bool:
        """Whether a job that comes now could run now."""
        with self._lock:
            alone = any(job.alone for job in self._held.values())
            return self._room > self._ahead and not alone and not self._closing.is_set()

    @property
    def pending(self) -> int:
        """Outcomes that Redis does not have yet."""
        return len(self._outcomes) + len(self._fresh)

    def flush(self) -> None:
        """Send what is waiting; raises RedisError and keeps what Redis did not take."""
        while True:
            with self._lock:
                fresh, self._fresh = self._fresh, []
                self._outcomes += fresh
            self.spool.add(fresh)
            if not self._outcomes:
                return self.spool.clear()
            batch = self._outcomes[:MOST_AT_ONCE]
            failed: list[Outcome] = []
            problem: redis_py.RedisError | None = None
            for outcome, reply in zip(batch, self.queue.commit(batch), strict=True):
                if isinstance(reply, redis_py.RedisError) and passes(reply):
                    failed.append(outcome)
                    problem = reply
                else:
                    self._settle(outcome, reply)
            self._outcomes = [*self._outcomes[len(batch) :], *failed]
            self.metrics.commits_pending.set(self.pending)
            if problem:
                raise problem

    def _settle(self, outcome: Outcome, reply: bool | redis_py.RedisError) -> None:
        """Redis has answered: it has this outcome, or does not want it."""
        self.forget(outcome.job)
        if isinstance(reply, redis_py.RedisError):  # its lease will expire, and in the end it fails as poison
            log.error("the result of %s cannot be recorded: %s", outcome.job.id, redis_trouble(reply))
        elif reply:
            self.metrics.observe_outcome(outcome)
        else:
            self.metrics.stale.inc()

    def _claim(self) -> bool:
        self._hand_over()
        with self._lock:
            room, ahead, held = self._room, min(self._room, self._ahead), len(self._held)
            alone = any(job.alone for job in self._held.values())
        if not room or alone or self._closing.is_set():
            return False
        jobs = self.queue.claim(room, ahead, held, self.speed.pace)
        with self._lock:
            self._room = max(0, self._room - len(jobs))
            self._held.update((job.id, job) for job in jobs)
            self._unread += jobs
        self._hand_over()
        return bool(jobs)

    def _hand_over(self) -> None:
        """Give the worker what was claimed, once Redis has noted that these jobs are to blame if it dies of them."""
        if not self._unread:
            return
        self.queue.blame(self._unread)
        with self._lock:
            self._jobs += self._unread
            self._unread = []
        self.arrived.set()
