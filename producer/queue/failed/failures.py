"""The lines of a batch that failed, for people to read: which, why, and where they ran. No body of a job is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import redis as redis_py

from .. import wire

PAGE = 1000
"""Entries that one call reads, so that it never holds Redis up for long."""

FORM = re.compile(rb"(?:failed|cancelled) (\d+) \S+ ?([^\n]*)(?:\n([^\n]*)\n(\d+) (\d+) (\S*) (\S*) (.*))?", re.DOTALL)
"""How `record.lua` writes them; earlier versions wrote the first line alone."""


@dataclass(frozen=True)
class Failure:
    """A line that ended without a completion and could run again.

    `n` is its line number in the dataset. `reason` is what `--reason` looks at, code and message in up to 200
    characters, and `message` up to 1,000 of them. What an earlier version recorded has no `custom_id`, `pair` and
    `worker`, 0 `attempts`, and None for `at`, when it ended, in Unix seconds. `pair` is as keys have it (`wire.slug`).
    """

    n: int
    custom_id: str
    reason: str
    message: str
    pair: str
    worker: str
    attempts: int
    at: float | None

    def is_for(self, reason: str, pair: str = "") -> bool:
        """Whether `--reason` would find it, and it is of this pair, if one is named."""
        return reason.lower() in self.reason.lower() and pair in ("", self.pair)


def count(redis: redis_py.Redis, batch: str) -> int:
    """How many lines of a batch have failed and could run again."""
    return int(redis.hlen(wire.failures_key(batch)))


def failures(redis: redis_py.Redis, batch: str) -> Iterator[Failure]:
    """All of them, in no order, each once."""
    seen: set[int] = set()
    for _, value in redis.hscan_iter(wire.failures_key(batch), count=PAGE):
        failure = _read(value)
        if failure and failure.n not in seen:  # a hash that grows meanwhile may name an entry twice
            seen.add(failure.n)
            yield failure


def _read(value: bytes) -> Failure | None:
    """None if somebody else wrote there."""
    found = FORM.match(value)
    if not found:
        return None
    n, reason, more, ms, leases, pair, worker, custom_id = found.groups(b"")
    return Failure(
        n=int(n),
        custom_id=_text(custom_id),
        reason=_text(reason),
        message=_text(reason + more),
        pair=_text(pair),
        worker=_text(worker),
        attempts=max(int(leases or 0), 1 if worker else 0),
        at=int(ms) / 1000 if ms else None,
    )


def _text(part: bytes) -> str:
    """What was cut in the middle of a character loses it."""
    return part.decode("utf-8", "ignore")
