"""Shows how far a batch is: a bar on a terminal, plain lines in a pipe. All of it goes to standard error."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import redis as redis_py
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from . import batches
from .batches import BatchStatus

PLAIN_SECONDS = 5.0
"""Seconds between two lines in a pipe."""
REPORT_SECONDS = 1.0
"""Seconds between two looks at the workers' reports."""
WINDOW_SECONDS = 120.0
"""The time left is judged by the lines that ended within this time."""


@dataclass(frozen=True)
class Speed:
    """What the live workers of a pair report together."""

    workers: int = 0
    tokens_per_second: float = 0.0
    tokens_per_round: float = 0.0


def speed(redis: redis_py.Redis, pair: str) -> Speed:
    """The speed of all live workers that serve `pair`."""
    reports = [report for report in batches.workers(redis) if report.get("pair") == pair]
    total = {
        name: sum(float(report.get(name, 0)) for report in reports)
        for name in ("tokens_per_second", "accepted", "row_rounds")
    }
    per_round = total["accepted"] / total["row_rounds"] + 1 if total["row_rounds"] else 0.0
    return Speed(len(reports), total["tokens_per_second"], per_round)


class Meter:
    """Estimates the time left from the lines that ended lately."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def seconds_left(self, state: BatchStatus, now: float) -> float | None:
        """Seconds until the batch is complete, or None while nothing has ended."""
        self._seen.append((now, state.ended))
        while self._seen[0][0] < now - WINDOW_SECONDS:
            self._seen.popleft()
        since, ended = self._seen[0]
        if state.ended == ended:
            return None
        return (now - since) / (state.ended - ended) * (state.total - state.ended)


class BatchProgress:
    """A context manager; call it with each new state of the batch."""

    def __init__(self, redis: redis_py.Redis, pair: str) -> None:
        self.redis, self.pair = redis, pair
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        self._meter = Meter()
        self._speed = Speed()
        self._speed_at = self._line_at = 0.0
        self._last_line = ""

    def __enter__(self) -> BatchProgress:
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self.bar = Progress(BarColumn(), TextColumn("{task.description}"), console=self.console)
            self.bar.add_task("", total=None)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def say(self, text: str) -> None:
        """Shows `text` until the next state."""
        if self.bar:
            self.bar.update(self.bar.task_ids[0], description=text)
        else:
            self.console.print(text)

    def note(self, text: str) -> None:
        """Leaves a line standing above the bar."""
        (self.bar.console if self.bar else self.console).print(text, highlight=False)

    def __call__(self, state: BatchStatus) -> None:
        now = time.monotonic()
        if now - self._speed_at > REPORT_SECONDS:
            self._speed, self._speed_at = speed(self.redis, self.pair), now
        text = describe(state, self._speed, self._meter.seconds_left(state, now))
        if self.bar:
            self.bar.update(self.bar.task_ids[0], description=text, completed=state.ended, total=state.total)
        elif (state.complete or now - self._line_at > PLAIN_SECONDS) and text != self._last_line:
            self.console.print(text)
            self._line_at, self._last_line = now, text


def describe(state: BatchStatus, speed: Speed, seconds_left: float | None) -> str:
    """One line: `34/120 · 1 failed · 812 tokens/s · 4.1 tokens/round · 0:42 left`."""
    parts = [f"{state.ended}/{state.total}"]
    if state.failed:
        parts.append(f"{state.failed} failed")
    if state.cancelled:
        parts.append(f"{state.cancelled} cancelled")
    if state.complete:
        return " · ".join(parts)
    if not speed.workers:
        parts.append("waiting for a worker")
    if speed.tokens_per_second:
        parts.append(f"{speed.tokens_per_second:,.0f} tokens/s")
    if speed.tokens_per_round > 1.05:
        parts.append(f"{speed.tokens_per_round:.1f} tokens/round")
    if seconds_left is not None:
        parts.append(f"{clock(seconds_left)} left")
    return " · ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as `0:42`, `12:05` or `3:10:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
