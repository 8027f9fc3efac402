"""The worker: joins an engine to a queue. The engine runs on this thread, Redis on others."""

from __future__ import annotations

import logging
import math
import queue as queues
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redis as redis_py
from rq.utils import now
from rq.worker.base import BaseWorker

from ..engine.request import Completion, DeviceFailed, RequestError
from ..producer.queue.connect import without_retries
from ..producer.queue.errors import redis_trouble
from ..producer.queue.fleet import VERSIONED, Orders
from ..producer.queue.leases import JobQueue
from ..producer.queue.pair_names import canonical
from ..producer.queue.wire import JsonSerializer, pair_queue
from . import jobs, model_defaults, protocol, results
from .courier import Courier
from .duty import UNHEARD, VERSIONS, duty
from .heartbeat import Heartbeat
from .host import Host, Meter, RowSpeed, Sensors
from .jobs import Running
from .mac.memory import Relief
from .metrics.metrics import Metrics
from .protocol import Engine
from .spool import Spool
from .witness import Witness

log = logging.getLogger("draftmill.worker")

LOOK_EVERY = 0.05
"""Seconds between two looks at what is not a round, while none ends a request: rounds may be much shorter."""


class MillWorker(BaseWorker):
    """An RQ worker that keeps many jobs in flight in one process.

    While the queue is full it holds jobs of twice as many requests as the engine has rows, so that rows that end are
    filled without waiting for Redis.

    Args:
        engine: what generates.
        pair: the pair that the engine has loaded; the worker listens to its queues.
        connection: a client of Redis.
        spool: folder in which results wait for Redis.
        lease: seconds after which other workers take over the jobs of a worker that fell silent.
        drain: seconds that a warm stop may take; what runs longer is handed back.
        host: this machine.
        auto: whether to end, to be started anew, when the schedule says another pair.
        defaults: the model's generation defaults, as `model_defaults.read` finds them.
        name: of this worker, if its parent has chosen one, after so many `aborts` of workers before it.
    """

    def __init__(
        self,
        engine: Engine,
        pair: str,
        connection: redis_py.Redis,
        spool: Path,
        lease: float = 60.0,
        drain: float = 300.0,
        host: Host | None = None,
        auto: bool = False,
        defaults: Mapping[str, Any] | None = None,
        name: str | None = None,
        aborts: int = 0,
    ) -> None:
        host = host or Host.here()
        name = name or f"{host.name}-{secrets.token_hex(3)}"  # one that was killed must not stand in the next one's way
        queues = [pair_queue(pair)]  # as `rq info` shows it: its batches have the queues below this name
        super().__init__(queues, name=name, connection=connection, serializer=JsonSerializer)
        self.engine = engine
        self.pair = pair = canonical(pair)
        about = {"host": host.name, "chip": host.chip, "mlx": VERSIONS["mlx"]}
        self.metrics = Metrics(pair, self.name, VERSIONS["draftmill"], **about)
        self.metrics.slots.set(engine.max_rows)
        self.metrics.gpu_aborts.inc(aborts)
        if engine.verdict:
            self.metrics.observe_check(engine.verdict)
        self.queue = JobQueue(connection, self.name, pair, lease)
        self.spool = Spool(spool, self.name)
        self.meter, self.speed = Meter(engine.stats), RowSpeed()
        self.courier = Courier(self.queue, self.metrics, self.spool, self.speed)
        self.witness = Witness(self.queue)
        engine.may_start = self._may_start
        self.pulse = Heartbeat(
            self,
            JobQueue(without_retries(connection), self.name, pair, lease),
            self.metrics,
            self.courier.held,
            self.speed,
            host.name,
            self.report,
            self.obey,
            self.request_shutdown,
        )
        self.host, self.sensors, self.relief = host, Sensors(host), Relief()
        self.drain, self.auto, self.defaults = drain, auto, defaults or {}
        self.duty, self.restart, self.signals = UNHEARD, False, 0
        self._hand_back_at, self._stop_at, self._look_at = math.inf, math.inf, 0.0
        self._running: dict[str, Running] = {}
        self._of_request: dict[str, Running] = {}
        self._requests_per_job = 1.0
        self._done = self._failed = 0
        self.birth_date = now()

    def _set_connection(self, connection: redis_py.Redis) -> redis_py.Redis:
        """RQ would raise the socket timeout to minutes, for blocking pops; this worker makes none."""
        return connection

    def work(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] -- RQ's options are of RQ's loop
        """Run until a signal says stop; True after a warm stop, False if jobs were handed back.

        The first SIGTERM or SIGINT finishes what is in flight, for `drain` seconds at most; the second hands it
        back and ends at once. `restart` is True if it ended by itself, to serve another pair.

        Raises:
            DeviceFailed: the system took the GPU away; all jobs are handed back, and nobody is to blame.
            EngineFailed: the engine cannot go on; its jobs are handed back.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.request_shutdown)
        self.sensors.start()
        self.courier.start()
        self.witness.start()
        self.pulse.start()
        ended_well = False
        try:
            while not self._out_of_time:
                if self.courier.arrived.is_set() or not self.engine.busy or time.monotonic() >= self._look_at:
                    self._look_around()
                if self.engine.busy:
                    self._step()
                elif self.signals and not self.courier.arrived.is_set():
                    break
                else:
                    self.courier.arrived.wait(0.1)
            ended_well = True
        except DeviceFailed:
            ended_well, self.pulse.stays = True, True
            raise
        finally:  # jobs that were running when the worker failed are not handed back: their leases count
            self._close({} if ended_well else self._running)
        return not self.courier.held()

    def request_shutdown(self, *_: Any) -> None:
        """Ask for a warm stop; asked twice, for a quick one. A signal handler: it takes no lock."""
        self.signals += 1
        self._stop_at = min(self._stop_at, time.monotonic() + self.drain)

    @property
    def _out_of_time(self) -> bool:
        return self.signals > 1 or time.monotonic() > self._stop_at

    def _look_around(self) -> None:
        """Whatever is to be done between rounds."""
        if not (self.courier.is_alive() and self.pulse.is_alive()):
            raise RuntimeError("a thread of the worker has ended; see the log above")
        self._look_at = time.monotonic() + LOOK_EVERY
        self.witness.keep_up(self._running.values())
        self._take()
        self._drop()
        self._watch_deadlines()
        self._watch_duty()
        self._watch_memory()

    def _take(self) -> None:
        """Hand the jobs that have arrived to the engine."""
        ended = []
        for job in self.courier.exchange(*self._room()):
            self.metrics.queue_seconds.observe(job.waited)
            if running := self._running.get(job.id):  # its lease was lost, and it came back while still running
                running.job, running.dropped, running.counts = job, None, True
                continue
            try:
                body = model_defaults.applied(jobs.decode(job, self.pair), self.defaults)
                asked = jobs.asked(job, body, self.engine.text, self.engine.adapters)
                self._start(running := Running(job, body, asked, time.monotonic(), self.meter.now))
            except (jobs.BadJob, RequestError) as error:
                ended.append(results.refused(job, str(error)))
            except Exception as error:  # whatever it is, it concerns this job alone
                log.error("the engine failed to take %s: %s", job.id, type(error).__name__)
                ended.append(results.retry(job, f"the engine failed with {type(error).__name__}"))
            else:
                self._running[job.id] = running
        self._deliver(ended)

    def _room(self) -> tuple[int, int]:
        """How many jobs to have more, and how many of them are not for a free row, if they are as large as the last."""
        self.speed.rows = self.engine.max_rows if self.duty.takes_jobs and not self.signals else 0
        if not self.speed.rows:
            return 0, 0
        if self._running:
            self._requests_per_job = len(self._of_request) / len(self._running)
        free = max(0, 2 * self.engine.max_rows - len(self._of_request))
        size = max(1.0, self._requests_per_job)
        return math.ceil(free / size), int(min(free, self.engine.max_rows) / size)

    def _start(self, running: Running) -> None:
        """Give the engine what it does not have of a job, all or nothing."""
        started = []
        try:
            for request in running.open:
                self.engine.add(request)
                started.append(request.id)
        except BaseException:
            for id in started:
                self.engine.cancel(id)
            raise
        self._of_request.update(dict.fromkeys(started, running))

    def _cancel(self, running: Running) -> None:
        for request in running.open:
            self.engine.cancel(request.id)

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
            self._cancel(running)
            if drop.why == "lost":
                self.metrics.leases_lost.inc()
                self.courier.forget(running.job)

    def _watch_deadlines(self) -> None:
        for running in self._running.values():
            if time.monotonic() > running.deadline and not running.dropped:
                running.dropped = "overdue"
                self._cancel(running)

    def _watch_duty(self) -> None:
        """While the worker takes nothing new: finish what runs, for `drain` seconds at most, then hand it back."""
        if self.duty.takes_jobs:
            self._hand_back_at = math.inf
            return
        now = time.monotonic()
        self._hand_back_at = min(self._hand_back_at, now + self.drain)
        if self.duty.restart and not self.signals:
            self.restart = True
            self.request_shutdown()
        for running in self._running.values() if now > self._hand_back_at else ():
            if not running.dropped:
                running.dropped = "returned"
                self._cancel(running)

    def _watch_memory(self) -> None:
        if self.relief.look(self.sensors.latest.memory, time.monotonic()):
            self.engine.resize(self.relief.share)
            self.metrics.slots.set(self.engine.max_rows)

    def _step(self) -> None:
        begin = time.perf_counter()
        try:
            completions = self.engine.step()
        except Exception as error:  # the engine goes on after rounds that fail, while it can
            if not isinstance(error, DeviceFailed):
                self._give_up(error)
            raise
        seconds = time.perf_counter() - begin
        self.metrics.rounds.observe(seconds, self.engine.stats)
        self.speed.observe_round(seconds, self.engine.stats)
        if completions:
            ended = [self._ended(completion) for completion in completions]
            self._deliver([outcome for outcome in ended if outcome])
            if len(self._of_request) <= self.engine.max_rows:  # no other waits in the engine for a row
                self._look_at = 0.0

    def _may_start(self, ids: Sequence[str]) -> bool:
        """Whether requests may run: once Redis knows whom to blame should this worker die, or if it does not answer.
        Meanwhile other rows go on; where there are none, this waits.
        """
        alone = not any(running.in_row for running in self._running.values())
        for id in ids:
            if running := self._of_request.get(id):
                running.in_row = True
        while not (known := self.witness.keep_up(self._running.values())) and alone:
            self.witness.wait()
        return known

    def _ended(self, completion: Completion) -> results.Outcome | None:
        """A request has ended: what becomes of its job, if that was the last one, or none of the others is of use."""
        running = self._of_request.pop(completion.id, None)
        if running is None:  # of a job that could not be taken as a whole
            return None
        running.completions[completion.id] = completion
        if completion.error:
            self._cancel(running)
        if not running.ended:
            return None
        del self._running[running.job.id]
        self.speed.observe_job(running.body.size, running.generated_tokens)
        return self._outcome(running)

    def _outcome(self, running: Running) -> results.Outcome | None:
        job, completions = running.job, running.choices
        if failed := [each for each in completions if each.finish_reason == "failed"]:
            return results.retry(job, failed[0].error or "the engine failed")
        if errors := [each.error for each in completions if each.error]:
            return results.refused(job, errors[0])
        cancelled = [each.id for each in completions if each.finish_reason == "cancelled"]
        if not cancelled:
            self.metrics.run_seconds.observe(time.monotonic() - running.since)
            joules = self.meter.share(running.before, running.handled_tokens)
            return results.completed(job, running.body, running.asked, completions, self.engine.text, joules)
        if running.dropped is None:  # stopped for a lost lease, then leased to us anew
            running.in_row = False
            for id in cancelled:
                del running.completions[id]
            self._running[job.id] = running
            self._start(running)
        elif running.dropped == "overdue":
            return results.overdue(job, running.body.sampling.max_seconds or 0)
        elif running.dropped == "returned":
            return results.returned(job)
        elif running.dropped != "lost":
            return results.cancelled(job, running.dropped)
        return None

    def _give_up(self, error: Exception) -> None:
        """The engine cannot go on, and so this worker ends: let what ran be tried again, later, and the rest return."""
        kept = [running for running in self._running.values() if running.dropped != "lost"]
        self._running.clear()
        self._of_request.clear()
        nobody_ran = not any(running.in_row for running in kept)
        reason = f"the engine failed with {type(error).__name__}"
        self._deliver(
            [
                results.retry(running.job, reason) if running.in_row or nobody_ran else results.returned(running.job)
                for running in kept
            ]
        )

    def _deliver(self, outcomes: Sequence[results.Outcome]) -> None:
        if outcomes:
            statuses = [outcome.status for outcome in outcomes]
            self._done += statuses.count("done")
            self._failed += statuses.count("failed") + statuses.count("cancelled")
            self.courier.deliver(outcomes)
        self.metrics.in_flight.set(len(self._running))

    def _close(self, lost: Mapping[str, Running]) -> None:
        """Deliver what is finished while there is time, then only try; what Redis does not take stays on disk.

        What is not finished is handed back, but for the jobs that are `lost`.
        """
        self.courier.close()
        while self.courier.is_alive() and not self._out_of_time:
            self.courier.join(0.1)
        self.courier.abort()
        self.courier.join()
        self.pulse.stop()
        try:
            self.courier.flush()
            if count := self.queue.release(job for job in self.courier.held() if job.id not in lost):
                log.warning("handed back %d unfinished jobs", count)
            self.pulse.sign_off()
        except redis_py.RedisError as error:
            said, count = redis_trouble(error), self.courier.pending
            log.warning("%s; %d results wait in %s for the next worker on this machine", said, count, self.spool.path)
        self.spool.close()

    def obey(self, orders: Orders) -> None:
        """Do from now on what operators ask. Called by the heartbeat's thread."""
        before, self.duty = self.duty, duty(orders, VERSIONS, self.pair, self.auto)
        if self.duty != before and (self.duty.reason or before != UNHEARD):
            log.warning("%s%s", self.duty.state, f": {self.duty.reason}" if self.duty.reason else "")

    def report(self) -> dict[str, Any]:
        """What each heartbeat publishes; `wire.worker_key` describes it. Called by the heartbeat's thread."""
        reading, held = self.sensors.latest, len(self.courier.held())
        self.metrics.memory_short.set(reading.memory.short)
        if joules := self.meter.beat(reading.power_watts, held > 0):
            self.metrics.add_energy(joules)
        state, reason = ("draining", "stopping") if self.signals else (self.duty.state, self.duty.reason)
        return {
            "pair": self.pair,
            **self.host.report(reading),
            **{VERSIONED[name]: version for name, version in VERSIONS.items()},
            **protocol.report(self.engine),
            "state": "drained" if state == "draining" and not held else state,
            "reason": reason,
            "lease": self.queue.lease,
            "metrics": self.metrics.address,
            "in_flight": len(self._running),
            "done": self._done,
            "failed": self._failed,
            "tokens_per_second": self.meter.tokens_per_second,
            "energy_joules": round(self.meter.joules, 1),
        }
