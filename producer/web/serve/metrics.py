"""/metrics for Prometheus and /healthz for whoever restarts servers: how this server is, never what it was asked."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import prometheus_client as prometheus
import redis as redis_py
import redis.exceptions as rx
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api_errors import ApiError
from .batch_record import STATUSES, BatchRecord
from .records import Shelf

HEALTH = "/healthz"
"""The path for which nobody needs a key."""
PATIENCE_SECONDS = 2.0
"""How long /healthz waits for Redis."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
BUCKETS = (0.005, 0.02, 0.1, 0.5, 2, 10, 30, 60, 300, 600, float("inf"))
"""Seconds of a request: most take a moment, calls as long as their tokens."""


class Metrics:
    """What one server counts, in a registry of its own."""

    def __init__(self, redis: redis_py.Redis, shelf: Shelf[BatchRecord]) -> None:
        self._redis = redis
        self._ping: asyncio.Task[bool] | None = None
        self._registry = prometheus.CollectorRegistry()
        self._registry.register(Batches(shelf))
        self._requests = prometheus.Counter(
            "draftmill_serve_requests",
            "Requests that were answered.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = prometheus.Histogram(
            "draftmill_serve_request_seconds",
            "How long requests took until they were answered whole.",
            ("route",),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._waiting = prometheus.Gauge(
            "draftmill_serve_waiting_calls", "Calls that wait for their result.", registry=self._registry
        )

    @property
    def routes(self) -> Iterator[Route]:
        yield Route("/metrics", self.show, methods=["GET"])
        yield Route(HEALTH, self.health, methods=["GET"])

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, status).inc()
        self._seconds.labels(route).observe(seconds)

    def waiting(self) -> AbstractContextManager[object]:
        """A call waits as long as this is open."""
        return self._waiting.track_inprogress()

    def show(self, _: Request) -> Response:
        return Response(
            prometheus.generate_latest(self._registry), headers={"content-type": prometheus.CONTENT_TYPE_LATEST}
        )

    async def health(self, _: Request) -> Response:
        """200 if Redis answers. Those who ask while it does not share one question, so that they take no threads."""
        if self._ping is None or self._ping.done():
            self._ping = asyncio.create_task(run_in_threadpool(self._answers))
        await asyncio.wait((self._ping,), timeout=PATIENCE_SECONDS)
        if self._ping.done() and self._ping.result():
            return JSONResponse({"status": "ok"})
        raise ApiError(503, "The server cannot reach its queue.", code="no_queue")

    def _answers(self) -> bool:
        try:
            return bool(self._redis.ping())
        except rx.RedisError:
            return False


class Batches(Collector):
    """Batches by status, as they are when Prometheus asks."""

    def __init__(self, shelf: Shelf[BatchRecord]) -> None:
        self._shelf = shelf

    def collect(self) -> Iterator[Metric]:
        by_status = Counter(batch.status for batch in self._shelf)
        found = GaugeMetricFamily("draftmill_serve_batches", "Batches that this server keeps.", labels=("status",))
        for status in STATUSES:
            found.add_metric((status,), by_status[status])
        yield found


class Counted:
    """Counts every request by the route that it asked for, whatever became of it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[Route]) -> None:
        self.app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, begin = 500, time.monotonic()  # what a defect is answered with, outside of here

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.count(self._route(scope), method, status, time.monotonic() - begin)

    def _route(self, scope: Scope) -> str:
        """The path of the route, names in it unfilled: the paths that clients make up are without an end."""
        return next((route.path for route in self._routes if route.matches(scope)[0] != Match.NONE), "other")
