"""`draftmill exporter`: the fleet's metrics and its workers' addresses, for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import click
import orjson
import redis as redis_py
from prometheus_client import CollectorRegistry, make_asgi_app
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from redis.backoff import NoBackoff
from redis.retry import Retry
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..cli import options
from ..queue import fleet
from ..queue.connect import connect
from . import listen
from . import tls as tls_files
from .exporter_collector import FarmCollector

SHUTDOWN_SECONDS = 2
"""How long a scrape may go on once the exporter is told to stop."""
LOOK_SECONDS = 1.0
"""Between two looks at a farm with many open batches."""


@click.command("exporter")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=9480, show_default=True, help="0 takes a free one.")
@tls_files.options
@options.redis_url
def exporter(host: str, port: int, tls_cert: Path | None, tls_key: Path | None, redis_url: str | None) -> None:
    """Tell Prometheus of the farm: one process for all of it, beside the metrics of each worker.

    \b
    /metrics  queue depth and age, batches, workers, Redis's health
    /sd       where the workers serve their metrics, for http_sd_configs

    Workers are found that were started with --metrics-port and a --metrics-host that Prometheus can reach. The
    Redis user `metrics` may do all of this, and sees neither prompts nor results.

    \b
    Examples:
      draftmill exporter
      REDIS_URL=redis://metrics:PASSWORD@queue.local draftmill exporter --host 0.0.0.0

    Exit codes: 0 stopped by Ctrl-C or SIGTERM, 2 wrong usage, 3 cannot use Redis.
    """
    tls = tls_files.read(tls_cert, tls_key)
    redis = connect(redis_url)
    redis.set_retry(Retry(NoBackoff(), 1))  # Prometheus asks again, and does not wait for long
    with listen.listen(host, port) as listener:
        click.echo(f"exporter on {listen.url(listener, tls)}/metrics")
        listen.run(create_app(redis), listener, SHUTDOWN_SECONDS, tls)


def create_app(redis: redis_py.Redis) -> Starlette:
    """The exporter's two pages."""
    collector = FarmCollector(redis)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        looking = asyncio.create_task(_keep_up(collector))
        yield
        looking.cancel()

    def discover(_: Request) -> Response:
        try:
            return Response(orjson.dumps(targets(redis)), media_type="application/json")
        except redis_py.RedisError:  # Prometheus keeps the list that it has
            return PlainTextResponse("Redis does not answer\n", 503)

    def missing(_: Request, __: Exception) -> Response:
        return PlainTextResponse("/metrics and /sd are here\n", 404)

    routes = [Route("/metrics", Metrics(collector)), Route("/sd", discover)]
    return Starlette(routes=routes, exception_handlers={404: missing}, lifespan=lifespan)


async def _keep_up(collector: FarmCollector) -> None:
    """Looks between scrapes as well, where one look cannot read all open batches."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if collector.is_behind:
            with suppress(redis_py.RedisError):  # the next scrape says so
                await run_in_threadpool(collector.look)


class Metrics:
    """Prometheus's own ASGI app. A thread collects what it shows, so that a slow Redis keeps nobody else waiting."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        registry = CollectorRegistry()
        registry.register(Collected(await run_in_threadpool(lambda: list(self._collector.collect()))))
        await make_asgi_app(registry)(scope, receive, send)


class Collected(Collector):
    """Metrics as they were at one moment."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def targets(redis: redis_py.Redis) -> list[dict[str, Any]]:
    """Where the metrics of the workers are that have them, in the form of Prometheus's http_sd.

    One that is gone stays among them for a day, or until its machine has another worker: `up` tells of it.
    """
    return [
        {"targets": [address], "labels": {"host": report.host, "pair": report.text("pair")}}
        for report in fleet.reports(redis)
        if (address := report.text("metrics"))
    ]
