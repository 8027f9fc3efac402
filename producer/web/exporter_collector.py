"""What Prometheus sees of the farm: queues, batches, workers and Redis, read from Redis whenever Prometheus asks."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import redis as redis_py
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..cli.report import word
from ..queue import fleet, wire
from ..queue.batches import BatchStatus
from ..queue.fleet import Report, Spent
from .batch_states import MOST_OPEN, BatchStates

STATES = ("queued", "running", "paused", "complete", "cancelled", "collected")
"""Of a batch."""
DUTIES = ("working", "draining", "drained", "refusing", "gone")
"""States of a worker."""
THERMAL = {"nominal": 0, "fair": 1, "serious": 2, "critical": 3}
"""Numbers for thermal pressure, as workers report it."""
WORKER = ("worker", "host", "pair")
"""Labels of what is known of one worker."""


class Waiting(NamedTuple):
    """The jobs of a batch that wait for a pair; `labels` are pair and priority. The first waits since a Redis TIME in
    seconds, or infinity.
    """

    labels: tuple[str, str]
    depth: int
    since: float


class FarmCollector(Collector):
    """Reads Redis for each scrape; while it does not answer there is `draftmill_redis_up 0` and nothing else.

    Of many open batches a look reads some: see BatchStates. Then `look` is to be called between scrapes, too.
    """

    def __init__(self, redis: redis_py.Redis) -> None:
        self._redis = redis
        self._states = BatchStates(redis, round=1)
        self._words: dict[str, str] = {}
        self._waiting: dict[tuple[str, str], Waiting] = {}
        self._lock = threading.Lock()

    @property
    def is_behind(self) -> bool:
        """Whether there are more open batches than a look reads."""
        return len(self._states.open) > MOST_OPEN

    def collect(self) -> Iterator[Metric]:
        up = 1
        found: list[Metric] = []
        try:
            with self._lock:
                self._look()
                found = list(self._batches())
            workers, users = _workers(fleet.reports(self._redis)), _users(fleet.spent(self._redis))
            found += [*workers, *users, *self._server()]
        except redis_py.RedisError:
            up = 0
        yield GaugeMetricFamily("draftmill_redis_up", "Whether Redis answers the exporter.", up)
        yield from found

    def describe(self) -> Iterator[Metric]:
        """Nothing: Redis need not be there when the collector is registered."""
        return iter(())

    def look(self) -> None:
        """Reads what has not been read for longest. Raises RedisError."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        names = self._states.look()
        read = self._states.read
        self._words |= {state.id: word(state) for state in read}
        open_ones = [state for state in read if not (state.complete or state.is_cancelled)]
        queues = [(state, pair) for state in open_ones for pair in state.pairs]
        for state in read:
            for pair in state.pairs:
                self._waiting.pop((state.id, pair), None)
        for (state, pair), depth in zip(queues, self._depths(queues), strict=True):
            since = state.waiting_since[pair] if depth else math.inf
            self._waiting[state.id, pair] = Waiting((pair, state.priority), depth, since)
        if len(self._words) > len(names):
            known = set(names)
            self._words = {name: word for name, word in self._words.items() if name in known}
            self._waiting = {queue: waiting for queue, waiting in self._waiting.items() if queue[0] in known}

    def _batches(self) -> Iterator[Metric]:
        by_state = {state: 0 for state in STATES} | Counter(self._words.values())
        yield _gauge("draftmill_batches", "Batches that Redis holds, by state.", ("state",), by_state)
        seconds, microseconds = self._redis.time()
        depths: dict[tuple[str, str], int] = {}
        first: dict[tuple[str, str], float] = {}
        for labels, depth, since in self._waiting.values():
            depths[labels] = depths.get(labels, 0) + depth
            if since < first.get(labels, math.inf):
                first[labels] = since
        now = seconds + microseconds / 1e6
        ages = {labels: max(0.0, now - first.get(labels, now)) for labels in depths}
        names = ("pair", "priority")
        yield _gauge("draftmill_queue_depth", "Jobs that wait for a worker.", names, depths)
        help = "How long the job has waited that has waited longest; 0 if none waits."
        yield _gauge("draftmill_queue_oldest_age_seconds", help, names, ages)

    def _depths(self, queues: list[tuple[BatchStatus, str]]) -> list[int]:
        """Jobs in the queue of each of these batches and pairs."""
        with self._redis.pipeline(transaction=False) as pipe:
            for state, pair in queues:
                pipe.llen(f"rq:queue:{wire.queue_name(pair, state.id)}")
            lengths: list[int] = pipe.execute()
        return lengths

    def _server(self) -> Iterator[Metric]:
        info: Any = self._redis.info()
        running = fleet.running(self._redis).total()
        later: Any = self._redis.zcard(wire.LATER)
        fine = info.get("aof_last_write_status") == "ok" and info.get("aof_last_bgrewrite_status") == "ok"
        for name, help, value in (
            ("draftmill_jobs_running", "Jobs that are leased to a worker.", running),
            ("draftmill_jobs_delayed", "Jobs that failed and wait for their next try.", later),
            ("draftmill_redis_memory_used_bytes", "Memory that Redis uses.", info["used_memory"]),
            ("draftmill_redis_memory_max_bytes", "Memory that Redis may use; 0 for no limit.", info["maxmemory"]),
            ("draftmill_redis_clients", "Clients that are connected to Redis.", info["connected_clients"]),
            ("draftmill_redis_aof_enabled", "Whether Redis writes an append-only file.", info["aof_enabled"]),
            ("draftmill_redis_aof_ok", "Whether its last write and its last rewrite went well.", fine),
        ):
            yield GaugeMetricFamily(name, help, value)
        yield CounterMetricFamily(
            "draftmill_redis_commands", "Commands that Redis has run.", info["total_commands_processed"]
        )


def _workers(reports: list[Report]) -> Iterator[Metric]:
    counts = Counter({(report.text("pair"), state): 0 for report in reports for state in DUTIES})
    counts.update((report.text("pair"), report.state) for report in reports)
    help = "Workers by state; gone: silent for longer than their lease."
    yield _gauge("draftmill_workers", help, ("pair", "state"), counts)
    age, lease, thermal, power = (
        GaugeMetricFamily(f"draftmill_worker_{name}", help, labels=WORKER)
        for name, help in (
            ("heartbeat_age_seconds", "Time since a worker's last heartbeat."),
            ("lease_seconds", "Silence after which others take over a worker's jobs."),
            ("thermal_state", "Thermal pressure: 0 nominal, 1 fair, 2 serious (slowed down), 3 critical, -1 unknown."),
            ("power_watts", "What a worker's machine draws."),
        )
    )
    for report in reports:
        labels = (report.name, report.host, report.text("pair"))
        age.add_metric(labels, report.age)
        lease.add_metric(labels, report.number("lease"))
        thermal.add_metric(labels, THERMAL.get(report.text("thermal"), -1))
        if report.power_watts is not None:
            power.add_metric(labels, report.power_watts)
    yield from (age, lease, thermal, power)


def _users(spent: list[Spent]) -> Iterator[Metric]:
    help = "Tokens of a user's lines that have ended, of prompts and generated."
    tokens = CounterMetricFamily("draftmill_user_tokens", help, labels=("user", "kind"))
    help = "What machines whose power is known drew for a user's lines that have ended."
    energy = CounterMetricFamily("draftmill_user_energy_joules", help, labels=("user",))
    for found in spent:
        tokens.add_metric((found.user, "prompt"), found.prompt_tokens)
        tokens.add_metric((found.user, "generated"), found.generated_tokens)
        if found.joules is not None:
            energy.add_metric((found.user,), found.joules)
    yield from (tokens, energy)


def _gauge(name: str, help: str, labels: tuple[str, ...], values: Any) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help, labels=labels)
    for key, value in values.items():
        family.add_metric((key,) if isinstance(key, str) else key, value)
    return family
