"""What Prometheus sees of one worker, in a registry of its own: base units, and no job, batch or prompt in a label."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import orjson
import prometheus_client as prometheus

from ...engine.verdict import Verdict
from ...producer.queue.leases import Outcome, Reaped
from .rounds import RoundMetrics

JOB_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400, 86400)

OUTCOMES = ("done", "failed", "cancelled", "retry", "returned")
REASONS = ("invalid_request", "deadline_exceeded", "engine_failed", "lost_leases")
"""Codes of error lines."""
KINDS = ("prompt", "cached", "completion", "drafted", "accepted")
"""Tokens that the line of a result counts."""
ANYWHERE = ("", "0.0.0.0", "::")
"""Addresses to listen on under which nobody can be reached."""

prometheus.disable_created_metrics()  # when a series began is of no use here, and doubles what a scrape carries


class Metrics:
    """The counters of one worker.

    Tokens are counted twice: round by round as the engine handles them, whatever becomes of their job; and as
    `result_tokens` once Redis has recorded a result, from its line, so that sums over lines and counters agree.

    Args:
        info: what else there is to say of the worker.
    """

    def __init__(self, pair: str, worker: str, version: str, **info: str) -> None:
        self.registry = prometheus.CollectorRegistry()
        self.address = ""  # host:port under which others find these metrics, if they do
        counter = partial(prometheus.Counter, registry=self.registry)
        gauge = partial(prometheus.Gauge, registry=self.registry)
        histogram = partial(prometheus.Histogram, registry=self.registry)
        self.jobs = counter("draftmill_jobs", "Tries of jobs by outcome; retry, returned: to run again.", ["outcome"])
        self.failures = counter("draftmill_failures", "Tries of jobs that failed, by reason.", ["reason"])
        self.result_tokens = counter(
            "draftmill_result_tokens", "Tokens of recorded results, as their lines say.", ["kind"]
        )
        self.rounds = RoundMetrics()
        self.registry.register(self.rounds)
        self.slots = gauge("draftmill_slots", "Rows that the engine runs at a time.")
        self.in_flight = gauge("draftmill_in_flight", "Jobs that the engine has.")
        self.run_seconds = histogram("draftmill_run_seconds", "From claim to end of a job.", buckets=JOB_SECONDS)
        self.queue_seconds = histogram("draftmill_queue_seconds", "From queue to claim of a job.", buckets=JOB_SECONDS)
        self.commits_pending = gauge("draftmill_commits_pending", "Outcomes not yet in Redis.")
        self.redis_errors = counter("draftmill_redis_errors", "Failed calls of Redis.")
        self.leases_lost = counter("draftmill_leases_lost", "Leases lost by this worker.")
        self.stale = counter("draftmill_stale_commits", "Commits that came too late.")
        self.reaped = counter("draftmill_reaped", "Expired leases taken back.")
        self.gpu_aborts = counter("draftmill_gpu_aborts", "Command buffers that the GPU gave up: each ended a worker.")
        self.memory_short = gauge("draftmill_memory_short", "Whether macOS says that memory is short here.")
        self.active_memory = gauge("draftmill_mlx_active_memory_bytes", "Memory that MLX has in use.")
        self.peak_memory = gauge("draftmill_mlx_peak_memory_bytes", "Most memory that MLX had in use.")
        self.check_error = gauge(
            "draftmill_load_check_error_ratio", "Distance of the engine's logits from mlx-lm's at load, relative."
        )
        self.check_excused = gauge("draftmill_load_check_excused_ratio", "The largest such distance that is excused.")
        self.check_dropped = gauge(
            "draftmill_load_check_dropped_operations", "Operations that were wrong here and run as stock MLX."
        )
        labels = {"pair": pair, "worker": worker, "version": version, **info}
        gauge("draftmill_worker_info", "This worker.", list(labels)).labels(**labels).set(1)
        for outcome in OUTCOMES:  # a counter that appears with its first event hides it from `rate`
            self.jobs.labels(outcome)
        for reason in REASONS:
            self.failures.labels(reason)
        for kind in KINDS:
            self.result_tokens.labels(kind)
        self._energy: prometheus.Counter | None = None

    def serve(self, host: str, port: int) -> None:
        """Answer Prometheus on `host:port`, any free port if it is 0; raises OSError if the port is taken.

        The library's own server will do: a worker has no other pages, is installed without the web commands' packages,
        and its main thread belongs to the engine.
        """
        server, _ = prometheus.start_http_server(port, addr=host, registry=self.registry)
        reachable = socket.gethostname() if host in ANYWHERE else host
        self.address = f"{f'[{reachable}]' if ':' in reachable else reachable}:{server.server_port}"

    def observe_check(self, verdict: Verdict) -> None:
        """Tell what the load check found."""
        self.check_error.set(verdict.error)
        self.check_excused.set(verdict.excused)
        self.check_dropped.set(len(verdict.dropped))

    def watch_mlx(self) -> None:
        """From now on read MLX's memory whenever Prometheus asks."""
        import mlx.core as mx

        self.active_memory.set_function(mx.get_active_memory)
        self.peak_memory.set_function(mx.get_peak_memory)

    def observe_outcome(self, outcome: Outcome) -> None:
        """Account for an outcome that Redis has recorded."""
        self.jobs.labels(outcome.status).inc()
        match outcome.status:
            case "done":
                self._observe_usage(orjson.loads(outcome.line)["response"]["body"]["usage"])
            case "failed":
                self.failures.labels(orjson.loads(outcome.line)["error"]["code"]).inc()
            case "retry":
                self.failures.labels("engine_failed").inc()

    def _observe_usage(self, usage: dict[str, Any]) -> None:
        drafts = usage.get("completion_tokens_details", {})
        accepted = drafts.get("accepted_prediction_tokens", 0)
        counts = (
            usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"],
            usage["completion_tokens"],
            accepted + drafts.get("rejected_prediction_tokens", 0),
            accepted,
        )
        for kind, count in zip(KINDS, counts, strict=True):
            self.result_tokens.labels(kind).inc(count)

    def observe_reaped(self, reaped: Reaped) -> None:
        """Account for expired leases that this worker took back."""
        self.reaped.inc(reaped.requeued + reaped.poisoned)
        self.jobs.labels("failed").inc(reaped.poisoned)
        self.jobs.labels("cancelled").inc(reaped.taken)
        self.failures.labels("lost_leases").inc(reaped.poisoned)

    def add_energy(self, joules: float) -> None:
        """Account for what the machine drew while jobs were in flight; while that is unknown there is no counter."""
        if self._energy is None:
            help = "What the machine drew while jobs were in flight."
            self._energy = prometheus.Counter("draftmill_energy_joules", help, registry=self.registry)
        self._energy.inc(joules)
