"""The Python interface for asyncio: `Client`, its calls made in threads, so that the event loop never waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Unpack

from ..input.dataset import BadLine
from ..output import collect
from ..queue.batches import BatchStatus
from ..queue.result import Result
from .client import PAGE, Batch, Client, Options, Source


@dataclass(frozen=True)
class AsyncBatch:
    """A batch in the queue; its methods are those of `Batch`."""

    batch: Batch

    @property
    def id(self) -> str:
        return self.batch.id

    @property
    def bad(self) -> tuple[BadLine, ...]:
        return self.batch.bad

    async def status(self) -> BatchStatus:
        return await asyncio.to_thread(self.batch.status)

    async def results(self, after: str = "0-0") -> AsyncIterator[Result]:
        while True:
            page, complete = await asyncio.to_thread(self.batch.page, after)
            for result in page:
                after = result.entry
                yield result
            if complete:
                return
            if len(page) < PAGE:
                await asyncio.sleep(collect.POLL_SECONDS)

    async def wait(self) -> BatchStatus:
        """Returns when the batch is complete; `asyncio.timeout` limits it."""
        while self.batch.feeding() or not (state := await self.status()).complete:
            await asyncio.sleep(collect.POLL_SECONDS)
        return state

    async def cancel(self) -> None:
        await asyncio.to_thread(self.batch.cancel)

    async def forget(self) -> None:
        await asyncio.to_thread(self.batch.forget)


class AsyncClient:
    """An asynchronous context manager; what it does is told by `Client`."""

    def __init__(self, redis_url: str | None = None) -> None:
        self._redis_url = redis_url
        self._client: Client | None = None

    async def __aenter__(self) -> AsyncClient:
        self._client = await asyncio.to_thread(Client, self._redis_url)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await asyncio.to_thread(self._connected.close, kind is None)

    async def submit(self, source: Source, **options: Unpack[Options]) -> AsyncBatch:
        return AsyncBatch(await asyncio.to_thread(self._connected.submit, source, **options))

    async def batch(self, id: str) -> AsyncBatch:
        return AsyncBatch(await asyncio.to_thread(self._connected.batch, id))

    @property
    def _connected(self) -> Client:
        if self._client is None:
            raise RuntimeError("use it as `async with AsyncClient() as client:`")
        return self._client
