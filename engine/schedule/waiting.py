"""Requests that wait for a row, in the order that ends a batch soonest and starves nobody."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable

from .row import Row

Key = tuple[int, int, int, tuple[int, ...], int]

OVERTAKING = 16
"""How many later arrivals, for each row of the engine, may start before a request."""


class Waiting:
    """The waiting requests, best first.

    Preempted rows go first, the last one preempted, which is the oldest, before the others. Then come those that may
    take the most rounds: a batch ends when its last row does, and rows that are short fill its tail evenly (longest
    processing time first; Graham 1969). Of equals, those with one LoRA adapter whose prompts begin alike follow each
    other, while their prefix is kept.

    Args:
        window: how many later arrivals may overtake a request; after that it is the next to start.
        rounds: how many rounds a row may take.
    """

    def __init__(self, window: int, rounds: Callable[[Row], int]):
        self._window, self._rounds = window, rounds
        self._sorted: list[tuple[Key, Row]] = []
        self._keys: dict[Row, Key] = {}  # in order of arrival
        self._arrivals = self._returned = 0

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, row: Row) -> None:
        """A request arrives."""
        self._arrivals += 1
        self._insert(row, (0, -self._rounds(row), row.adapter, row.request.tokens, self._arrivals))

    def put_back(self, row: Row) -> None:
        """A running row comes back, to be the next."""
        self._returned += 1
        self._insert(row, (-self._returned, 0, 0, (), 0))

    def remove(self, row: Row) -> None:
        """Whether it starts or is cancelled."""
        del self._sorted[bisect_left(self._sorted, self._keys.pop(row), key=lambda pair: pair[0])]

    @property
    def next(self) -> Row | None:
        """The row to start next."""
        return self._unless_overtaken(self._sorted[0][1]) if self._sorted else None

    @property
    def shortest(self) -> Row | None:
        """The row to start next if all of them can start now: a preempted one, else that with the shortest prompt."""
        if not self._sorted:
            return None
        (returned, *_), best = self._sorted[0]
        if not returned:
            best = min(self._keys, key=lambda row: len(row.request.tokens))
        return self._unless_overtaken(best)

    def _unless_overtaken(self, best: Row) -> Row:
        """The best row, unless it came so late that the oldest one must not wait for it."""
        oldest = next(iter(self._keys))
        *_, arrival = self._keys[best]
        *_, first = self._keys[oldest]
        return oldest if arrival - first > self._window else best

    def _insert(self, row: Row, key: Key) -> None:
        self._keys[row] = key
        insort(self._sorted, (key, row), key=lambda pair: pair[0])
