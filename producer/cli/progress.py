"""Shows how far a batch is: a bar on a terminal, plain lines in a pipe. All of it goes to standard error."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
import redis as redis_py
import redis.exceptions as rx

from ..client.shares import Share, shares
from ..queue import fleet
from ..queue.batches import BatchStatus

if TYPE_CHECKING:
    from .bar import Bar

PLAIN_SECONDS = 5.0
"""Seconds between two lines in a pipe."""
FETCH_SECONDS = 1.0
"""Seconds until the first line about a file that is fetched."""
REPORT_SECONDS = 1.0
"""Seconds between two looks at the workers' reports."""
WINDOW_SECONDS = 120.0
"""The time left is judged by the lines that ended within this time."""
MOST_WORKERS = 8
"""Workers with a line of their own below the bar, the fastest first."""


@dataclass(frozen=True)
class WorkerSpeed:
    """What one live worker reports; `tokens_per_round` is 0 until it has drafted, `watt_hours_per_million` (generated
    tokens) None unless its power is known.
    """

    name: str
    in_flight: int
    tokens_per_second: float
    tokens_per_round: float
    watt_hours_per_million: float | None = None
    pair: str = ""


@dataclass(frozen=True)
class Speed:
    """What the live workers of some pairs, or of all, report together."""

    workers: tuple[WorkerSpeed, ...] = ()
    tokens_per_second: float = 0.0
    tokens_per_round: float = 0.0
    watt_hours_per_million: float | None = None


def speed(redis: redis_py.Redis, *pairs: str) -> Speed:
    """The speed of all live workers that serve one of `pairs`, or any if none is named."""
    live = [report for report in fleet.reports(redis) if not report.gone]
    live = [report for report in live if not pairs or report.text("pair") in pairs]
    workers = [
        WorkerSpeed(
            report.name,
            int(report.number("in_flight")),
            report.tokens_per_second,
            report.tokens_per_round,
            report.watt_hours_per_million,
            report.text("pair"),
        )
        for report in live
    ]
    workers.sort(key=lambda worker: -worker.tokens_per_second)
    total = sum(worker.tokens_per_second for worker in workers)
    return Speed(tuple(workers), total, fleet.tokens_per_round(live), fleet.watt_hours_per_million(live))


class Meter:
    """Estimates the time left from the lines that ended lately."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def seconds_left(self, state: BatchStatus, now: float) -> float | None:
        """Seconds until the batch is complete, or None while nothing has ended."""
        self._seen.append((now, state.ended))
        while self._seen[0][0] < now - WINDOW_SECONDS or self._seen[0][1] > state.ended:  # failures were queued again
            self._seen.popleft()
        since, ended = self._seen[0]
        if state.ended == ended:
            return None
        return (now - since) / (state.ended - ended) * (state.total - state.ended)


class BatchProgress:
    """A context manager; call it with each new state of the batch."""

    def __init__(self, redis: redis_py.Redis, *pairs: str) -> None:
        self.redis, self.pairs = redis, pairs
        self._bar: Bar | None = None
        self._meter = Meter()
        self._speed = Speed()
        self._unserved: tuple[str, ...] = ()
        self._speed_at = self._line_at = -math.inf
        self._last_line = ""

    def __enter__(self) -> BatchProgress:
        if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            from .bar import Bar

            self._bar = Bar()
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.below = ()
            self._bar.stop()

    def say(self, text: str) -> None:
        """Shows `text` until the next state; may be called again and again."""
        if self._bar:
            self._bar.say(text)
        elif time.monotonic() - self._line_at > PLAIN_SECONDS:
            self._line(text)

    def note(self, text: str) -> None:
        """Leaves a line standing above the bar."""
        if self._bar:
            self._bar.note(text)
        else:
            click.echo(text, err=True)

    def __call__(self, state: BatchStatus) -> None:
        now = time.monotonic()
        if now - self._speed_at > REPORT_SECONDS:
            with suppress(rx.ConnectionError, rx.TimeoutError):  # who follows the batch waits for Redis
                self._speed = speed(self.redis, *self.pairs)
                self._unserved = unserved(shares(self.redis, state), self._speed)
            self._speed_at = now
        text = describe(state, self._speed, self._meter.seconds_left(state, now), self._unserved)
        if self._bar:
            self._bar.show(text, state.ended, state.total, below(self._speed.workers))
        elif now - self._line_at > PLAIN_SECONDS or (state.complete and text != self._last_line):
            self._line(text)

    def _line(self, text: str) -> None:
        click.echo(text, err=True)
        self._line_at, self._last_line = time.monotonic(), text


class Moving:
    """Says how far INPUT is fetched, or OUT sent; call it with each new text. What takes a moment only is not worth a
    line.

    Nothing but plain lines: a scheduler fetches for several schedules at once.
    """

    def __init__(self) -> None:
        self._line_at = time.monotonic() - PLAIN_SECONDS + FETCH_SECONDS

    def __call__(self, text: str) -> None:
        if (now := time.monotonic()) - self._line_at > PLAIN_SECONDS:
            click.echo(text, err=True)
            self._line_at = now


def below(workers: Sequence[WorkerSpeed]) -> list[str]:
    """A line for each worker, as far as there is room."""
    lines = [describe_worker(worker) for worker in workers[:MOST_WORKERS]]
    if len(workers) > MOST_WORKERS:
        lines.append(f"and {len(workers) - MOST_WORKERS} more workers")
    return lines


def unserved(shares: Sequence[Share], speed: Speed) -> tuple[str, ...]:
    """The pairs for which lines are queued, and for which no worker is live."""
    live = {worker.pair for worker in speed.workers}
    return tuple(share.pair for share in shares if share.queued and share.pair not in live)


def describe(state: BatchStatus, speed: Speed, seconds_left: float | None, unserved: Sequence[str] = ()) -> str:
    """One line: `34/120 · 1 failed · 812 tokens/s · 4.1 tokens/round · 0:42 left`."""
    parts = [f"{state.ended}/{state.total}"]
    if state.failed:
        parts.append(f"{state.failed} failed")
    if state.cancelled:
        parts.append(f"{state.cancelled} cancelled")
    if state.complete:
        return " · ".join(parts)
    if state.is_paused:
        parts.append("paused")
    if not speed.workers:
        parts.append("waiting for a worker")
    elif unserved:
        parts.append(f"no worker of {', '.join(unserved)}")
    if len(speed.workers) > 1:
        parts.append(f"{len(speed.workers)} workers")
    parts += rates(speed)
    if seconds_left is not None and not state.is_paused:
        parts.append(f"{clock(seconds_left)} left")
    return " · ".join(parts)


def describe_worker(worker: WorkerSpeed) -> str:
    """One line: `mini-3-98cdd4 · 32 in flight · 203 tokens/s · 4.1 tokens/round`."""
    return " · ".join([worker.name, f"{worker.in_flight} in flight", *rates(worker)])


def rates(speed: Speed | WorkerSpeed) -> list[str]:
    rates: list[str] = []
    if speed.tokens_per_second:
        rates.append(f"{speed.tokens_per_second:,.0f} tokens/s")
    if speed.tokens_per_round > 1.05:
        rates.append(f"{speed.tokens_per_round:.1f} tokens/round")
    if speed.watt_hours_per_million:
        rates.append(f"{speed.watt_hours_per_million:,.0f} Wh/million tokens")
    return rates


def clock(seconds: float) -> str:
    """Seconds as `0:42`, `12:05` or `3:10:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
