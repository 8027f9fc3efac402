"""What Prometheus sees of one worker, in a registry of its own."""

from __future__ import annotations

from itertools import zip_longest
from typing import NamedTuple

import prometheus_client as prometheus
from prometheus_client import Counter, Gauge, Histogram

from ..engine.stats import Stats

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
ROUND_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
JOB_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400, 86400)


class Counts(NamedTuple):
    """The engine's counters at one moment."""

    rounds: int
    rows: int
    generated: int
    prompt: int
    cached: int
    row_rounds: int
    drafted: int
    accepted: int
    positions: tuple[int, ...]

    @classmethod
    def of(cls, stats: Stats) -> Counts:
        return cls(
            stats.rounds,
            stats.rows,
            stats.generated_tokens,
            stats.prompt_tokens,
            stats.cached_tokens,
            stats.row_rounds,
            stats.drafted,
            stats.accepted,
            tuple(stats.accepted_per_position),
        )


class Metrics:
    """Counters of one worker; base units, no label names a job, a batch or a prompt."""

    def __init__(self, pair: str, worker: str, version: str) -> None:
        self.registry = registry = prometheus.CollectorRegistry()
        self.jobs = Counter("draftmill_jobs", "Jobs by outcome.", ["outcome"], registry=registry)
        self.generated = Counter("draftmill_generated_tokens", "Tokens generated.", registry=registry)
        self.prompt = Counter("draftmill_prompt_tokens", "Prompt tokens of finished jobs.", registry=registry)
        self.cached = Counter(
            "draftmill_cached_tokens", "Prompt tokens of finished jobs that were not prefilled.", registry=registry
        )
        self.rounds = Counter("draftmill_rounds", "Rounds of the engine.", registry=registry)
        self.spec_rounds = Counter("draftmill_spec_rounds", "Decoding rounds, counted for each row.", registry=registry)
        self.spec_drafted = Counter("draftmill_spec_draft_tokens", "Draft tokens verified.", registry=registry)
        self.spec_accepted = Counter("draftmill_spec_accepted_tokens", "Draft tokens accepted.", registry=registry)
        self.spec_positions = Counter(
            "draftmill_spec_accepted_tokens_per_position",
            "Draft tokens accepted, by their place in the block.",
            ["position"],
            registry=registry,
        )
        self.batch_size = Histogram("draftmill_batch_size", "Rows in a round.", buckets=ROWS, registry=registry)
        self.round_seconds = Histogram(
            "draftmill_round_seconds", "Wall time of a round.", buckets=ROUND_SECONDS, registry=registry
        )
        self.in_flight = Gauge("draftmill_in_flight", "Jobs claimed and not committed.", registry=registry)
        self.run_seconds = Histogram(
            "draftmill_run_seconds", "From claim to end of a job.", buckets=JOB_SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "draftmill_queue_seconds", "From queue to claim of a job.", buckets=JOB_SECONDS, registry=registry
        )
        self.commits_pending = Gauge("draftmill_commits_pending", "Outcomes not yet in Redis.", registry=registry)
        self.redis_errors = Counter("draftmill_redis_errors", "Failed calls of Redis.", registry=registry)
        self.leases_lost = Counter("draftmill_leases_lost", "Leases lost by this worker.", registry=registry)
        self.stale = Counter("draftmill_stale_commits", "Commits that came too late.", registry=registry)
        self.reaped = Counter("draftmill_reaped", "Expired leases taken back.", registry=registry)
        info = Gauge("draftmill_worker_info", "This worker.", ["pair", "worker", "version"], registry=registry)
        info.labels(pair, worker, version).set(1)
        self._seen = Counts(0, 0, 0, 0, 0, 0, 0, 0, ())

    def serve(self, host: str, port: int) -> None:
        """Answer Prometheus on `host:port`; raises OSError if the port is taken."""
        prometheus.start_http_server(port, addr=host, registry=self.registry)

    def observe_round(self, seconds: float, stats: Stats) -> None:
        """Account for one step of the engine."""
        before, self._seen = self._seen, Counts.of(stats)
        now = self._seen
        self.generated.inc(now.generated - before.generated)
        self.prompt.inc(now.prompt - before.prompt)
        self.cached.inc(now.cached - before.cached)
        self.spec_rounds.inc(now.row_rounds - before.row_rounds)
        self.spec_drafted.inc(now.drafted - before.drafted)
        self.spec_accepted.inc(now.accepted - before.accepted)
        for position, (new, old) in enumerate(zip_longest(now.positions, before.positions, fillvalue=0)):
            if new > old:
                self.spec_positions.labels(position).inc(new - old)
        if rounds := now.rounds - before.rounds:
            self.rounds.inc(rounds)
            self.batch_size.observe((now.rows - before.rows) / rounds)
            self.round_seconds.observe(seconds)
