"""Looks at Redis every second, once for all who watch, and streams what has changed as server-sent events. While nobody
watches it looks as often as the charts need."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

import orjson
import redis.exceptions as rx
from starlette.concurrency import run_in_threadpool

from ...queue.errors import BUG, explain, explain_redis
from .history import SAMPLE_SECONDS, History
from .view import Observer, View

LOG = logging.getLogger("draftmill.dashboard")

LOOK_SECONDS = 1.0


class Feed:
    """What all pages show. `events` holds each part of it as an event, with the number of its last change.

    Args:
        observer: looks at Redis.
        where: names that Redis in messages.
    """

    def __init__(self, observer: Observer, where: str) -> None:
        self._observer = observer
        self._where = where
        self._history = History()
        self._sample_at = 0.0
        self._events: dict[str, tuple[int, bytes]] = {}
        self._news = asyncio.Event()
        self._watched = asyncio.Event()
        self.watching = 0

    async def run(self) -> None:
        """Looks until it is cancelled."""
        trouble = None
        while True:
            begin = time.monotonic()
            self._put("now", round(time.time()))
            try:
                self._show(await run_in_threadpool(self._observer.look))
                trouble = None
            except Exception as error:
                known = explain_redis(error, self._where) if isinstance(error, rx.RedisError) else explain(error)
                if known.message != trouble:
                    trouble = known.message
                    LOG.error("%s", trouble, exc_info=error if known.exit_code == BUG else None)
            self._put("trouble", trouble)
            news, self._news = self._news, asyncio.Event()
            news.set()
            await asyncio.sleep(max(0.1, begin + LOOK_SECONDS - time.monotonic()))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._watched.wait(), begin + SAMPLE_SECONDS - time.monotonic())

    def _show(self, view: View) -> None:
        now = time.monotonic()
        if now >= self._sample_at:
            sample = self._history.add(time.time(), view.tokens_per_second, view.queued, view.reports)
            self._put("sample", sample)
            self._sample_at = now + SAMPLE_SECONDS - LOOK_SECONDS / 2
        for name, part in view.parts.items():
            self._put(name, part)

    def _put(self, name: str, content: Any) -> None:
        event = _event(name, content)
        version, before = self._events.get(name, (0, b""))
        if event != before:
            self._events[name] = (version + 1, event)

    async def stream(self, compressed: bool, over: Callable[[], bool]) -> AsyncGenerator[bytes, None]:
        """All that there is, then whatever changes, until `over`. Compressed, a change is some dozens of bytes."""
        packer = zlib.compressobj(wbits=31) if compressed else None
        seen = {"sample": self._events["sample"][0]} if "sample" in self._events else {}
        events = [_event("history", self._history.columns)]
        self.watching += 1
        self._watched.set()
        try:
            while not over():
                for name, (version, event) in self._events.items():
                    if seen.get(name) != version:
                        seen[name] = version
                        events.append(event)
                data = b"".join(events)
                yield packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH) if packer else data
                events = []
                await self._news.wait()
        finally:
            self.watching -= 1
            if not self.watching:
                self._watched.clear()


def _event(name: str, content: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(content))
