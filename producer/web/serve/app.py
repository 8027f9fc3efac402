"""The server's parts put together as one ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import redis as redis_py
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware

from .batch_record import BatchRecord
from .batches import Batches
from .chat import Chat
from .errors import HANDLERS
from .files import Files
from .keys import Guard, Keys
from .models import Models
from .records import Shelf
from .runner import Runner


def create_app(
    redis: redis_py.Redis, folder: Path, keys: Keys, nobody: str, pairs: Sequence[str], timeout: float
) -> Starlette:
    """The API over the files in `folder`, which no other server may use; `nobody` is the user where there are no keys,
    `pairs` are models beside the known ones.

    Unfinished batches go on when the application starts.
    """
    models = Models(redis, pairs)
    files = Files(folder / "files")
    runner = Runner(redis, Shelf(folder / "batches", BatchRecord), files, models, folder / "work")
    chat = Chat(redis, models, folder / "calls", timeout)
    parts = (files, Batches(files, runner), models, chat)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        runner.resume()
        chat.start()
        yield
        await chat.stop()
        await run_in_threadpool(runner.stop)

    return Starlette(
        routes=[route for part in parts for route in part.routes],
        middleware=[Middleware(Guard, keys=keys, nobody=nobody)],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
