"""Runs a worker with an engine of set speed, as a process of its own; its one argument is `Settings` as JSON."""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from draftmill.producer.queue.connect import connect
from draftmill.producer.queue.urls import names_sentinels
from draftmill.worker.host import Host
from draftmill.worker.worker import MillWorker
from tests.farm.crash import crash_at
from tests.worker.set_speed_engine import SetSpeedEngine

PAIR = "set-speed"


@dataclass(frozen=True)
class Settings:
    """`timeout` is the socket's; `crash` names a step at whose `crash_after`th time the process kills itself.

    `depth` is that of the engine's drafts. With `metrics` Prometheus finds it on a free port.
    """

    url: str
    spool: str
    rows: int = 8
    round_seconds: float = 0.005
    lease: float = 2
    drain: float = 60
    timeout: float = 10
    crash: str = ""
    crash_after: int = 1
    depth: int = 0
    host: str | None = None
    watts: float | None = None
    metrics: bool = False
    pair: str = PAIR

    def command(self) -> list[str]:
        """What starts such a worker."""
        return [sys.executable, "-m", "tests.worker.run_worker", orjson.dumps(asdict(self)).decode()]


def run(settings: Settings) -> bool:
    """Works until a signal; prints `ready` when it is about to claim."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    engine = SetSpeedEngine(settings.rows, settings.round_seconds, settings.depth)
    if names_sentinels(settings.url):
        client = connect(settings.url)
        client.set_retry(Retry(NoBackoff(), 1))
    else:
        client = redis.Redis.from_url(settings.url, socket_timeout=settings.timeout, retry=Retry(NoBackoff(), 1))
    host = Host.here(settings.host, settings.watts)
    worker = MillWorker(engine, settings.pair, client, Path(settings.spool), settings.lease, settings.drain, host)
    if settings.metrics:
        worker.metrics.watch_mlx()
        worker.metrics.serve("127.0.0.1", 0)
    if settings.crash:
        crash_at(worker, settings.crash, settings.crash_after)
    print("ready", flush=True)
    return worker.work()


if __name__ == "__main__":
    sys.exit(0 if run(Settings(**orjson.loads(sys.argv[1]))) else 130)
