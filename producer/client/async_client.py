"""The Python interface for asyncio: `Client`, its calls made in threads, so that the event loop never waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar, Unpack

from ..input.dataset import BadLine
from ..queue.batches import BatchStatus
from ..queue.result import Result
from .client import Batch, Client, Options, Reader, Source
from .submission import POLL_SECONDS

THREADS = 64
"""Calls that may wait for Redis at once; each batch that is read has one at a time."""

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class AsyncBatch:
    """A batch in the queue; its methods are those of `Batch`."""

    batch: Batch
    _threads: Executor

    @property
    def id(self) -> str:
        return self.batch.id

    @property
    def bad(self) -> tuple[BadLine, ...]:
        return self.batch.bad

    @property
    def notes(self) -> tuple[str, ...]:
        return self.batch.notes

    async def status(self) -> BatchStatus:
        return await _call(self._threads, self.batch.status)

    async def results(self, after: str = "0-0") -> AsyncIterator[Result]:
        reader = Reader(self.batch, after)
        while (page := await _call(self._threads, reader.next)) is not None:
            for result in page:
                yield result

    async def wait(self) -> BatchStatus:
        """Returns when the batch is complete; `asyncio.timeout` limits it."""
        while True:
            state = await self.status()
            if state.complete and not self.batch.feeding():
                return state
            await asyncio.sleep(POLL_SECONDS)

    async def cancel(self) -> None:
        await _call(self._threads, self.batch.cancel)

    async def forget(self) -> None:
        await _call(self._threads, self.batch.forget)


class AsyncClient:
    """An asynchronous context manager; what it does is told by `Client`."""

    def __init__(self, redis_url: str | None = None) -> None:
        self._redis_url = redis_url
        self._client: Client | None = None
        self._threads = ThreadPoolExecutor(THREADS, "draftmill")

    async def __aenter__(self) -> AsyncClient:
        self._client = await _call(self._threads, Client, self._redis_url)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await _call(self._threads, self._connected.close, kind is None)
        self._threads.shutdown(wait=False)

    async def submit(self, source: Source, **options: Unpack[Options]) -> AsyncBatch:
        return AsyncBatch(await _call(self._threads, self._connected.submit, source, **options), self._threads)

    async def batch(self, id: str) -> AsyncBatch:
        return AsyncBatch(await _call(self._threads, self._connected.batch, id), self._threads)

    @property
    def _connected(self) -> Client:
        if self._client is None:
            raise RuntimeError("use it as `async with AsyncClient() as client:`")
        return self._client


async def _call(
    threads: Executor,
    call: Callable[Parameters, Answer],
    *arguments: Parameters.args,
    **options: Parameters.kwargs,
) -> Answer:
    """The answer of a call that waits, made in a thread."""
    return await asyncio.get_running_loop().run_in_executor(threads, partial(call, *arguments, **options))
