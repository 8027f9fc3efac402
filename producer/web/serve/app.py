"""The server's parts put together as one ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import redis as redis_py
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware

from ...client.hook import Event, Hook
from ...queue.errors import explain
from ..door import Door
from ..keys import Keys
from ..notifier import Notifier
from .api_errors import HANDLERS, LOG
from .batch_record import BatchRecord
from .batches import Batches
from .chat import Chat
from .files import Files
from .guard import Guard
from .metrics import HEALTH, Counted, Metrics
from .models import Models
from .records import Shelf
from .runner import Runner

SWEEP_SECONDS = 60.0
"""Between two looks for what has expired."""


@dataclass(frozen=True)
class Settings:
    """How a server is to be: the `keys` that it accepts, and `nobody` as the user where there are none; `pairs` beside
    the known ones, and further names of pairs; seconds that a call may wait, that each batch may take at least, and
    that files and ended batches are kept; and whom to tell that a batch has ended.
    """

    keys: Keys
    nobody: str
    pairs: Sequence[str]
    aliases: Mapping[str, str]
    timeout: float
    window: float
    retention: float
    hook: Hook | None = None


def create_app(redis: redis_py.Redis, folder: Path, settings: Settings) -> Starlette:
    """The API over the files in `folder`, which no other server may use.

    Unfinished batches go on when the application starts.
    """
    models = Models(redis, settings.pairs, settings.aliases)
    files = Files(folder / "files", settings.retention)
    shelf = Shelf(folder / "batches", BatchRecord)
    metrics = Metrics(redis, shelf)
    runner = Runner(redis, shelf, files, models, folder / "work")
    chat = Chat(redis, models, metrics, folder / "calls", settings.timeout)
    parts = (files, Batches(files, runner, settings.window, tells=settings.hook is not None), models, chat, metrics)
    routes = [route for part in parts for route in part.routes]

    notifier = _notifier(settings.hook, shelf) if settings.hook else None

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        runner.resume()
        chat.start()
        if notifier:
            notifier.start()
        sweeping = asyncio.create_task(_sweep(files, runner, settings.retention))
        yield
        sweeping.cancel()
        if notifier:
            notifier.stop()
        await chat.stop()
        await run_in_threadpool(runner.stop)

    return Starlette(
        routes=routes,
        middleware=[
            Middleware(Counted, metrics=metrics, routes=routes),
            Middleware(Guard, door=Door(settings.keys), nobody=settings.nobody, free=(HEALTH,)),
        ],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )


def _notifier(hook: Hook, shelf: Shelf[BatchRecord]) -> Notifier:
    """Tells how batches ended, and notes in their records that it did."""

    def pending() -> dict[str, Event]:
        return {record.id: event for record in shelf if (event := record.event())}

    def told(id: str) -> None:
        if id in shelf:
            shelf.update(id, lambda record: replace(record, to_tell=False))

    return Notifier(hook, pending, told, LOG.warning)


async def _sweep(files: Files, runner: Runner, retention: float) -> None:
    """Deletes files and batches as they expire."""
    while True:
        try:
            await run_in_threadpool(files.sweep)
            await run_in_threadpool(runner.sweep, retention)
        except OSError as error:
            LOG.warning("cannot delete what has expired: %s", explain(error).message)
        await asyncio.sleep(SWEEP_SECONDS)
