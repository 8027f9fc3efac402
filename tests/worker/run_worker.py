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

from draftmill.engine.request import DeviceFailed
from draftmill.producer.queue.connect import connect
from draftmill.producer.queue.errors import GPU_GAVE_UP
from draftmill.producer.queue.urls import names_sentinels
from draftmill.worker.host import Host
from draftmill.worker.worker import MillWorker
from tests.farm.crash import crash_at
from tests.farm.simulated.engine import ClockEngine, work_and_note
from tests.worker.set_speed_engine import SetSpeedEngine

PAIR = "set-speed"


@dataclass(frozen=True)
class Settings:
    """`timeout` is the socket's; `crash` names a step at whose `crash_after`th time the process kills itself.

    `depth` is that of the engine's drafts. A worker that a parent has started has a `name`, after so many `aborts`;
    its GPU gives up after `aborts_after` rounds, which it `dies` of or says.
    With `metrics` Prometheus finds it on a free port. With a `row_speed`, in tokens a second, rows run by the clock,
    and the worker leaves its notes in the folder `notes`.
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
    name: str | None = None
    aborts: int = 0
    aborts_after: int = 0
    dies: bool = False
    row_speed: float = 0
    notes: str = ""

    def command(self) -> list[str]:
        """What starts such a worker."""
        return [sys.executable, "-m", "tests.worker.run_worker", orjson.dumps(asdict(self)).decode()]


def run(settings: Settings) -> bool:
    """Works until a signal; prints `ready` when it is about to claim."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    engine = _engine(settings)
    if names_sentinels(settings.url):
        client = connect(settings.url)
        client.set_retry(Retry(NoBackoff(), 1))
    else:
        client = redis.Redis.from_url(settings.url, socket_timeout=settings.timeout, retry=Retry(NoBackoff(), 1))
    host = Host.here(settings.host, settings.watts)
    spool, life = Path(settings.spool), {"name": settings.name, "aborts": settings.aborts}
    worker = MillWorker(engine, settings.pair, client, spool, settings.lease, settings.drain, host, **life)
    if settings.metrics:
        worker.metrics.watch_mlx()
        worker.metrics.serve("127.0.0.1", 0)
    if settings.crash:
        crash_at(worker, settings.crash, settings.crash_after)
    print("ready", flush=True)
    try:
        return work_and_note(worker, engine, Path(settings.notes)) if isinstance(engine, ClockEngine) else worker.work()
    except DeviceFailed as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(GPU_GAVE_UP)


def _engine(settings: Settings) -> SetSpeedEngine:
    if settings.row_speed:
        return ClockEngine(settings.rows, settings.row_speed)
    return SetSpeedEngine(settings.rows, settings.round_seconds, settings.depth, settings.aborts_after, settings.dies)


if __name__ == "__main__":
    sys.exit(0 if run(Settings(**orjson.loads(sys.argv[1]))) else 130)
