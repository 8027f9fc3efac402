"""Waits for news of many batches with one call to Redis, for those who would else need a thread for each."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import redis as redis_py
import redis.exceptions as rx

from ..queue import wire
from ..queue.connect import bearable, without_retries
from .collect import HOLD_SECONDS

BLOCK_SECONDS = 1.0
"""How long Redis is asked to wait for results. Who begins to wait meanwhile is noticed after that."""
LOOK_SECONDS = 5.0
"""Between two looks at whether Redis still has the batches, and nobody has cancelled or paused them."""
RENEW_SECONDS = HOLD_SECONDS / 3
"""Between two renewals of the right to collect them."""


@dataclass(frozen=True)
class Waiting:
    """A batch that has nothing to do before it has a result behind the stream entry `after`, or before the time `until`
    of time.monotonic. Meanwhile nobody but `holder` may take its results. Without one only time wakes it. `is_paused`
    says whether it was paused when it began to wait.
    """

    batch: str
    after: str = "0-0"
    holder: str = ""
    until: float = math.inf
    is_paused: bool = False


class Waiter(threading.Thread):
    """Calls `wake` with each batch that has waited long enough, once.

    Who `is_urgent` is woken within BLOCK_SECONDS. When Redis fails, all are: each finds out for itself what to do.
    """

    def __init__(self, redis: redis_py.Redis, wake: Callable[[str], object], is_urgent: Callable[[str], bool]) -> None:
        super().__init__(name="waiter", daemon=True)
        self._redis = without_retries(redis)
        self._wake, self._is_urgent = wake, is_urgent
        self._waiting: dict[str, Waiting] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._looked = self._renewed = time.monotonic()

    def add(self, waiting: Waiting) -> None:
        """Lets a batch wait."""
        with self._lock:
            self._waiting[waiting.batch] = waiting

    def stop(self) -> None:
        """Wakes nobody any more."""
        self._over.set()
        self.join(2 * BLOCK_SECONDS)

    def run(self) -> None:
        while not self._over.is_set():
            with self._lock:
                waiting = list(self._waiting.values())
            now = time.monotonic()
            self._end(
                each.batch for each in waiting if now >= each.until or (each.holder and self._is_urgent(each.batch))
            )
            held = [each for each in waiting if each.holder]
            try:
                self._end(self._news(held))
            except rx.RedisError:
                self._end(each.batch for each in held)

    def _end(self, batches: Iterable[str]) -> None:
        for batch in batches:
            with self._lock:
                known = self._waiting.pop(batch, None)
            if known:
                self._wake(batch)

    def _news(self, held: Sequence[Waiting]) -> Iterable[str]:
        """The batches that have something to do."""
        if not held:
            self._over.wait(BLOCK_SECONDS)
            return ()
        now = time.monotonic()
        if now >= self._looked + LOOK_SECONDS:
            self._looked = now
            self._end(_changed(self._redis, held))
        if now >= self._renewed + RENEW_SECONDS:
            self._renewed = now
            self._end(_taken(self._redis, held))
        return _with_results(self._redis, held)


def _with_results(redis: redis_py.Redis, held: Sequence[Waiting]) -> Iterable[str]:
    """Those that have results, after BLOCK_SECONDS at most."""
    streams: Any = {wire.results_key(each.batch): each.after for each in held}
    batches = {key.encode(): each.batch for key, each in zip(streams, held, strict=True)}
    found: Any = redis.xread(streams, 1, int(1000 * bearable(redis, BLOCK_SECONDS)))
    return [batches[key] for key, _ in found or ()]


def _changed(redis: redis_py.Redis, held: Sequence[Waiting]) -> Iterable[str]:
    """Those that Redis has lost, or that were cancelled, paused or resumed."""
    with redis.pipeline(transaction=False) as pipe:
        for each in held:
            pipe.hmget(wire.batch_key(each.batch), "pair", "cancelled_at", "paused_at")
        known = pipe.execute()
    return [
        each.batch
        for each, (pair, cancelled, paused) in zip(held, known, strict=True)
        if cancelled or not pair or (paused is not None) != each.is_paused
    ]


def _taken(redis: redis_py.Redis, held: Sequence[Waiting]) -> Iterable[str]:
    """Renews the right to collect each of them; returns those of which another may have it."""
    with redis.pipeline(transaction=False) as pipe:
        for each in held:
            pipe.get(wire.holder_key(each.batch))
        holders = pipe.execute()
        ours = [each for each, holder in zip(held, holders, strict=True) if holder == each.holder.encode()]
        for each in ours:  # nobody else can have taken it since: it lasts for longer
            pipe.set(wire.holder_key(each.batch), each.holder, px=1000 * HOLD_SECONDS, xx=True)
        renewed = {each.batch for each, done in zip(ours, pipe.execute(), strict=True) if done}
    return [each.batch for each in held if each.batch not in renewed]
