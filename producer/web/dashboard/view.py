"""What the page shows of Redis at one moment, as data; lists are bounded, whatever Redis holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import redis as redis_py

from ...cli.progress import Meter
from ...cli.report import batch_report
from ...queue import fleet, wire
from ...queue.batches import BatchStatus
from ...queue.fleet import Report
from ..batch_states import BatchStates

MOST_BATCHES = 50
MOST_WORKERS = 100
MOST_FAILURES = 20
MOST_CHARACTERS = 300
"""Characters of a text that somebody else chose."""
SILENT_SECONDS = 5.0
"""Heartbeats come every second or two; a worker without one for this long is shown as silent, then as gone."""


@dataclass(frozen=True)
class View:
    """The parts of the page as JSON, and what the charts need: tokens generated a second, jobs queued, and reports."""

    parts: dict[str, Any]
    tokens_per_second: float
    queued: int
    reports: tuple[Report, ...]


class Observer:
    """Looks at one Redis, again and again; not for several threads at a time."""

    def __init__(self, redis: redis_py.Redis) -> None:
        self._redis = redis
        self._states = BatchStates(redis)
        self._meters: dict[str, Meter] = {}

    def look(self) -> View:
        """Raises RedisError."""
        names = self._states.look(self._meters)
        reports = fleet.reports(self._redis)
        speed = sum(report.tokens_per_second for report in reports)
        queued = self._states.queued
        parts = {
            "totals": self._totals(reports, speed, queued),
            "batches": self._batches(names),
            "workers": [_worker(report) for report in sorted(reports, key=_worst_first)[:MOST_WORKERS]],
            "failures": self._failures(),
        }
        return View(parts, speed, queued, tuple(reports))

    def _totals(self, reports: Sequence[Report], speed: float, queued: int) -> dict[str, Any]:
        running = [state.running for state in self._states.open.values() if state.running]
        count = len(self._states.open) + len(self._states.ended)
        gone = sum(report.gone for report in reports)
        return {
            "batches": count,
            "batches_listed": min(count, MOST_BATCHES),
            "workers_listed": min(len(reports), MOST_WORKERS),
            "running_batches": len(running),
            "queued_batches": len(self._states.open) - len(running),
            "running": sum(running),
            "queued": queued,
            "workers": len(reports) - gone,
            "gone": gone,
            "tokens_per_second": round(speed, 1),
            "watt_hours_per_million": _rounded(fleet.watt_hours_per_million(reports)),
        }

    def _batches(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Those that run, then those that wait, then those that have ended; the newest of each first."""
        unended, ended = self._states.open, self._states.ended
        in_order = [unended[name] for name in names if name in unended]
        running = (state for state in in_order if state.running)
        waiting = (state for state in in_order if not state.running)
        over = (ended[name] for name in names if name in ended)
        shown = list(islice(chain(running, waiting, over), MOST_BATCHES))
        self._meters = {state.id: self._meters.get(state.id) or Meter() for state in shown if not state.complete}
        return [self._batch(state) for state in shown]

    def _batch(self, state: BatchStatus) -> dict[str, Any]:
        report = batch_report(state) | {"pair": ", ".join(state.pairs)}
        del report["pairs"]
        left = None if state.complete else self._meters[state.id].seconds_left(state, time.monotonic())
        return {
            **{name: _short(value) if isinstance(value, str) else value for name, value in report.items()},
            "batch": state.id,
            "ended": state.ended,
            "seconds_left": None if left is None else round(left),
        }

    def _failures(self) -> list[dict[str, Any]]:
        latest: Any = self._redis.xrevrange(wire.FAILED, count=MOST_FAILURES)
        return [
            {"id": entry.decode(), "at": int(entry.partition(b"-")[0]) / 1000}
            | {name.decode(): _short(value.decode("utf-8", "replace")) for name, value in fields.items()}
            for entry, fields in latest
        ]


def _worst_first(report: Report) -> tuple[int, str]:
    order = ("gone", "silent", "refusing", "drained", "draining")
    state = _state(report)
    return order.index(state) if state in order else len(order), report.name


def _state(report: Report) -> str:
    if not report.gone and report.age > SILENT_SECONDS:
        return "silent"
    return "idle" if report.state == "working" and not report.number("in_flight") else report.state


def _worker(report: Report) -> dict[str, Any]:
    texts = ("host", "chip", "os", "thermal", "version", "pair")
    return {
        "name": _short(report.name),
        "state": _state(report),
        "reason": _short(report.reason),
        "age": int(report.age),
        **{name: _short(report.text(name)) for name in texts},
        "memory": report.number("memory"),
        "in_flight": int(report.number("in_flight")),
        "tokens_per_second": report.tokens_per_second,
        "tokens_per_round": round(report.tokens_per_round, 2),
        "power_watts": None if report.gone else report.power_watts,
        "watt_hours_per_million": _rounded(report.watt_hours_per_million),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
