"""The worker: joins an engine to a queue. The engine runs on this thread, Redis on two others."""

from __future__ import annotations

import logging
import queue as queues
import re
import secrets
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import redis as redis_py
from rq.utils import now
from rq.worker.base import BaseWorker

from ..engine.request import Completion, Request, RequestError
from ..producer.contract import JobBody, JsonSerializer, slug
from . import jobs, results
from .courier import Courier
from .heartbeat import Heartbeat
from .metrics import Metrics
from .protocol import Engine
from .queue import Claimed, JobQueue

log = logging.getLogger("draftmill.worker")

VERSION = version("draftmill")


@dataclass
class Running:
    """A claimed job in the engine; `dropped` says why it should no longer run."""

    job: Claimed
    body: JobBody
    request: Request
    since: float
    dropped: str | None = None


class MillWorker(BaseWorker):
    """An RQ worker that keeps many jobs in flight in one process.

    While the queue is full it holds twice as many jobs as the engine has rows, so that rows that end are filled
    without waiting for Redis.

    Args:
        engine: what generates.
        pair: the pair that the engine has loaded; the worker listens to its queues.
        connection: a client of Redis.
        lease: seconds after which other workers take over the jobs of a worker that fell silent.
    """

    def __init__(self, engine: Engine, pair: str, connection: redis_py.Redis, lease: float = 60.0) -> None:
        queues = [f"draftmill.{slug(pair)}"]  # as `rq info` shows it: its batches have the queues below this name
        super().__init__(queues, name=worker_name(), connection=connection, serializer=JsonSerializer)  # type: ignore[arg-type]
        self.engine = engine
        self.pair = pair
        self.capacity = 2 * engine.max_rows
        self.metrics = Metrics(pair, self.name, VERSION)
        self.queue = JobQueue(connection, self.name, pair, lease)
        self.courier = Courier(self.queue, self.metrics, engine.max_rows)
        self.pulse = Heartbeat(self, self.queue, self.metrics, self.courier.held, self.report, self.request_shutdown)
        self.signals = 0
        self._running: dict[str, Running] = {}
        self._done = self._failed = 0
        self._speed: deque[tuple[float, int]] = deque(maxlen=11)
        self.birth_date = now()

    def _set_connection(self, connection: redis_py.Redis) -> redis_py.Redis:
        """RQ would raise the socket timeout to minutes, for blocking pops; this worker makes none."""
        return connection

    def work(self) -> bool:  # type: ignore[override]
        """Run until a signal says stop; True after a warm stop, False if jobs were handed back.

        The first SIGTERM or SIGINT finishes what is in flight, the second hands it back and ends at once.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.request_shutdown)
        self.courier.start()
        self.pulse.start()
        ended_well = False
        try:
            while self.signals < 2:
                if not (self.courier.is_alive() and self.pulse.is_alive()):
                    raise RuntimeError("a thread of the worker has ended; see the log above")
                self._take()
                self._drop()
                if self.engine.busy:
                    self._step()
                elif self.signals and not self.courier.arrived.is_set():
                    break
                else:
                    self.courier.arrived.wait(0.1)
            ended_well = True
        finally:  # jobs that were running when the engine failed are not handed back: their leases count
            self._close(hand_back=ended_well)
        return self.signals < 2

    def request_shutdown(self, *_: Any) -> None:
        """Ask for a warm stop; asked twice, for a quick one. A signal handler: it takes no lock."""
        self.signals += 1

    def _take(self) -> None:
        """Hand the jobs that have arrived to the engine."""
        refused = []
        room = 0 if self.signals else self.capacity - len(self._running)
        for job in self.courier.exchange(room):
            self.metrics.queue_seconds.observe(job.waited)
            if running := self._running.get(job.id):  # its lease was lost, and it came back while still running
                running.job, running.dropped = job, None
                continue
            try:
                body = jobs.decode(job, self.pair)
                request = jobs.request(job, body, self.engine)
                self.engine.add(request)
            except (jobs.BadJob, RequestError) as error:
                refused.append(results.refused(job, str(error)))
            else:
                self._running[job.id] = Running(job, body, request, time.monotonic())
        self._deliver(refused)

    def _drop(self) -> None:
        """Stop the rows whose lease is lost or that were cancelled."""
        while True:
            try:
                drop = self.pulse.drops.get_nowait()
            except queues.Empty:
                return
            running = self._running.get(drop.id)
            if running is None or running.dropped or drop.token not in ("", running.job.token):
                continue
            running.dropped = drop.why
            self.engine.cancel(drop.id)
            if drop.why == "lost":
                self.metrics.leases_lost.inc()
                self.courier.forget(running.job)

    def _step(self) -> None:
        begin = time.perf_counter()
        completions = self.engine.step()
        self.metrics.observe_round(time.perf_counter() - begin, self.engine.stats)
        ended = [self._ended(completion) for completion in completions]
        self._deliver([outcome for outcome in ended if outcome])

    def _ended(self, completion: Completion) -> results.Outcome | None:
        running = self._running.pop(completion.id)
        if completion.finish_reason != "cancelled":
            self.metrics.run_seconds.observe(time.monotonic() - running.since)
            return results.completed(running.job, running.body, completion)
        if running.dropped is None:  # stopped for a lost lease, then leased to us anew
            self._running[completion.id] = running
            self.engine.add(running.request)
        elif running.dropped != "lost":
            return results.cancelled(running.job, running.dropped)
        return None

    def _deliver(self, outcomes: Sequence[results.Outcome]) -> None:
        if outcomes:
            done = sum(outcome.status == "done" for outcome in outcomes)
            self._done += done
            self._failed += len(outcomes) - done
            self.courier.deliver(outcomes)
        self.metrics.in_flight.set(len(self._running))

    def _close(self, hand_back: bool) -> None:
        """Deliver what is finished, as long as it takes; after a second signal only try, and end."""
        self.courier.close()
        while self.courier.is_alive() and self.signals < 2:
            self.courier.join(0.1)
        self.courier.abort()
        self.courier.join()
        self.pulse.stop()
        try:
            self.courier.flush()
            if hand_back and (count := self.queue.release(self.courier.held())):
                log.warning("handed back %d unfinished jobs", count)
            self.register_death()
        except redis_py.RedisError as error:
            count = self.courier.pending
            log.warning("Redis: %s; %d unrecorded results will be generated again by others", error, count)

    def report(self) -> dict[str, Any]:
        """What each heartbeat publishes. Called by the heartbeat's thread."""
        stats = self.engine.stats
        self._speed.append((time.monotonic(), stats.generated_tokens))
        (before, then), (after, latest) = self._speed[0], self._speed[-1]
        return {
            "pair": self.pair,
            "hostname": socket.gethostname(),
            "version": VERSION,
            "in_flight": len(self._running),
            "done": self._done,
            "failed": self._failed,
            "rounds": stats.rounds,
            "generated_tokens": stats.generated_tokens,
            "tokens_per_second": round((latest - then) / (after - before), 1) if after > before else 0,
            "row_rounds": stats.row_rounds,
            "drafted": stats.drafted,
            "accepted": stats.accepted,
        }


def worker_name() -> str:
    """Host and a few random digits: a worker that was killed must not stand in its successor's way."""
    host = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname().partition(".")[0]) or "worker"
    return f"{host}-{secrets.token_hex(3)}"
