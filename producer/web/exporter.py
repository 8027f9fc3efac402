"""`draftmill exporter`: the farm's metrics and its workers' addresses, for Prometheus."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import click
import orjson
import redis as redis_py
from prometheus_client import CollectorRegistry, make_wsgi_app
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..cli import options
from ..queue import fleet
from ..queue.connect import connect
from ..queue.errors import UserError
from .exporter_collector import FarmCollector

JSON, TEXT = ("Content-Type", "application/json"), ("Content-Type", "text/plain; charset=utf-8")


@click.command("exporter")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=9480, show_default=True, help="0 takes a free one.")
@options.redis_url
def exporter(host: str, port: int, redis_url: str | None) -> None:
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

    Exit codes: 2 wrong usage, 3 cannot use Redis, 130 stopped by Ctrl-C.
    """
    redis = connect(redis_url)
    redis.set_retry(Retry(NoBackoff(), 1))  # Prometheus asks again, and does not wait for long
    application = Application(redis)
    try:
        with make_server(host, port, application, _server_class(host), QuietHandler) as listener:
            click.echo(f"exporter on http://{host}:{listener.server_port}/metrics")
            listener.serve_forever()
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error


class Application:
    """The exporter's two pages, as WSGI."""

    def __init__(self, redis: redis_py.Redis) -> None:
        self._redis = redis
        registry = CollectorRegistry()
        registry.register(FarmCollector(redis))
        self._metrics = make_wsgi_app(registry)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return self._metrics(environ, start_response)
            case "/sd":
                return self._discover(start_response)
            case _:
                start_response("404 Not Found", [TEXT])
                return [b"/metrics and /sd are here\n"]

    def _discover(self, start_response: Any) -> Iterable[bytes]:
        try:
            found = targets(self._redis)
        except redis_py.RedisError:  # Prometheus keeps the list that it has
            start_response("503 Service Unavailable", [TEXT])
            return [b"Redis does not answer\n"]
        start_response("200 OK", [JSON])
        return [orjson.dumps(found)]


def targets(redis: redis_py.Redis) -> list[dict[str, Any]]:
    """Where the metrics of the workers are that have them, in the form of Prometheus's http_sd.

    One that is gone stays among them for a day, or until its machine has another worker: `up` tells of it.
    """
    return [
        {"targets": [address], "labels": {"host": report.host, "pair": report.text("pair")}}
        for report in fleet.reports(redis)
        if (address := report.text("metrics"))
    ]


class QuietHandler(WSGIRequestHandler):
    """Writes no line for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _server_class(host: str) -> type[WSGIServer]:
    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    return Server
