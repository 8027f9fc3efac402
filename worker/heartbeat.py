"""The thread that keeps a worker alive in Redis: it renews leases, reports, reaps, and hears RQ's commands."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from typing import Any

import orjson
import redis as redis_py
from redis.client import PubSub
from rq.utils import now
from rq.worker.base import BaseWorker

from ..producer.queue import wire
from ..producer.queue.fleet import Orders
from ..producer.queue.leases import BEAT, Claimed, Drop, JobQueue
from ..producer.queue.scripts import run
from .host import RowSpeed
from .metrics.metrics import Metrics

log = logging.getLogger("draftmill.worker")

BEAT_SECONDS, IDLE_SECONDS = 1.0, 2.0
"""Between two heartbeats of a worker that has jobs, and of one that has none."""
DEAD_AFTER = 60
"""Seconds without a heartbeat after which a worker disappears from `rq info`."""
REFRESH_EVERY = DEAD_AFTER / 4
"""Seconds between two heartbeats that let its entries live on."""
REPORT_TTL = 24 * 3600
"""Seconds without a heartbeat after which the last report of a worker is dropped, that `draftmill workers` shows."""


class Heartbeat(threading.Thread):
    """Beats every second or two, more often if leases are short; it does not wait for the engine.

    Args:
        queue: on a client without retries; a client that pauses between its own attempts could wake too late to renew.
        held: the jobs whose leases are to be renewed.
        speed: of the rows, to be compared with the fleet.
        host: name of this machine in the fleet.
        report: what the worker says of itself, as text or numbers.
        on_orders: called after each beat with what operators ask of this worker.
        on_shutdown: called when RQ's `shutdown` command arrives.
    """

    def __init__(
        self,
        worker: BaseWorker,
        queue: JobQueue,
        metrics: Metrics,
        held: Callable[[], list[Claimed]],
        speed: RowSpeed,
        host: str,
        report: Callable[[], dict[str, Any]],
        on_orders: Callable[[Orders], None],
        on_shutdown: Callable[[], None],
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.worker, self.queue, self.metrics = worker, queue, metrics
        self.held, self.speed, self.report = held, speed, report
        self.on_orders, self.on_shutdown = on_orders, on_shutdown
        self._order_fields = Orders.fields(worker.name, host)
        self.drops: SimpleQueue[Drop] = SimpleQueue()
        self.stays = False
        """Whether the last report stays when the worker ends, for its parent to read."""
        self.beat_every = min(BEAT_SECONDS, queue.lease / 4)
        self.reap_every = min(5.0, queue.lease / 2)
        self._seen = b""
        self._told: dict[str, Any] = {}
        self._known: dict[str, Any] = {}
        self._refresh_at = 0.0
        self._over = threading.Event()
        self._commands: PubSub | None = None

    def run(self) -> None:
        reap_at = time.monotonic()
        while not self._over.is_set():
            try:
                self._beat()
                if time.monotonic() >= reap_at:
                    self._reap()
                    self.speed.beside_fleet = self.queue.compare(self.speed.tokens_per_second, self.speed.rows)
                    reap_at = time.monotonic() + self.reap_every
                self._listen(self.beat_every)
            except redis_py.RedisError:  # the courier says so; here, time will tell
                self.metrics.redis_errors.inc()
                self._hang_up()
                self._over.wait(self.beat_every)
        self._hang_up()

    def stop(self) -> None:
        self._over.set()
        self.join()

    def sign_off(self) -> None:
        """Take the worker out of Redis: it ends in good order. Raises RedisError."""
        if self.stays:
            return self._beat()
        self.worker.register_death()
        with self.queue.redis.pipeline(transaction=True) as pipe:
            pipe.zrem(wire.WORKERS, self.worker.name)
            pipe.delete(wire.worker_key(self.worker.name))
            pipe.hdel(wire.paces_key(self.queue.pair), self.worker.name)
            pipe.execute()

    def _beat(self) -> None:
        held = self.held()
        for drop in self.queue.renew(held) if held else ():
            self.drops.put(drop)
        shortest, orders = self._tell("busy" if held else "idle", self.report())
        # Others' leases count, too: they are taken back only if beats came often enough.
        can_rest = not held and shortest / 4 >= IDLE_SECONDS
        self.beat_every = min(IDLE_SECONDS if can_rest else BEAT_SECONDS, self.queue.lease / 4)
        try:
            self.on_orders(Orders.read(orders))
        except ValueError:
            log.error("what operators ask of this worker makes no sense: HGETALL %s", wire.FLEET)

    def _tell(self, state: str, report: dict[str, Any]) -> tuple[float, list[bytes | None]]:
        """Report what has changed, or all if Redis has not got what was reported before.

        Returns the shortest lease of the fleet in seconds, and the orders.
        """
        if (time_now := time.monotonic()) >= self._refresh_at:
            self.worker.last_heartbeat = now()
            self._refresh_at = time_now + REFRESH_EVERY
        counts = {"successful_job_count": report["done"], "failed_job_count": report["failed"]}
        known = self.worker.serialize() | counts | {"state": state}
        news = dict(known.items() - self._known.items()), dict(report.items() - self._told.items())
        reply = self._send(self._seen, *news) if self._seen else None
        self._seen, shortest_ms, orders = reply or self._send(b"", known, report)
        self._known, self._told = known, report
        return shortest_ms / 1000, orders

    def _send(self, seen: bytes, known: Mapping[str, Any], report: Mapping[str, Any]) -> Any:
        return run(
            self.queue.redis,
            BEAT,
            *(self.worker.name, int(1000 * self.queue.lease), REPORT_TTL, wire.pair_queue(self.queue.pair), DEAD_AFTER),
            *(seen, len(self._order_fields), *self._order_fields, len(known), *_flat(known), *_flat(report)),
        )

    def _reap(self) -> None:
        reaped = self.queue.reap()
        self.metrics.observe_reaped(reaped)
        if any(reaped):
            log.warning("took back %d expired leases, gave up %d poison jobs, ended %d that RQ's tools took", *reaped)

    def _listen(self, seconds: float) -> None:
        """Wait for RQ's commands until the next beat."""
        if self._commands is None:
            self._commands = self.queue.redis.pubsub(ignore_subscribe_messages=True)
            self._commands.subscribe(self.worker.pubsub_channel_name)
        commands = self._commands
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._over.is_set():
            message = commands.get_message(timeout=min(left, 0.2))
            if message:
                self._obey(message["data"])

    def _obey(self, data: bytes) -> None:
        try:
            payload = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        match payload:
            case {"command": "stop-job" | "stop-execution", "job_id": str(id)}:
                self.drops.put(Drop(id, "stopped"))
            case {"command": "shutdown"}:
                self.on_shutdown()

    def _hang_up(self) -> None:
        if self._commands is not None:
            self._commands.close()
            self._commands = None


def _flat(fields: Mapping[str, Any]) -> Iterator[Any]:
    return (part for field in fields.items() for part in field)
