"""Who takes part in the next round: decoding rows first, then prompt chunks, then new rows while memory lasts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from .extents import Extent, ExtentAllocator
from .row import Row

PREFILL_TOKENS = 512
"""Most prompt tokens in one round, so that decoding rows never wait long for a prompt."""

HEADROOM = 128
"""Slots beyond its prompt that a new row gets; extents double when they are outgrown."""


@dataclass(frozen=True)
class Segment:
    """One row's share of a round: `count` tokens; `yields` when the round produces its next token."""

    row: Row
    count: int
    yields: bool


@dataclass(frozen=True)
class Move:
    """The first `count` slots of `old` must be copied to `new` before the round runs."""

    old: Extent
    new: Extent
    count: int


@dataclass(frozen=True)
class Plan:
    """One round: what must move first, then the segments in packed order."""

    segments: list[Segment] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)


class Scheduler:
    """Rows in order of admission, requests that wait, and the extents of the pool. Knows no MLX."""

    def __init__(self, slots: int, max_rows: int):
        self.extents = ExtentAllocator(slots)
        self.max_rows = max_rows
        self.rows: list[Row] = []
        self.waiting: deque[Row] = deque()
        self.moved = 0
        self.preempted = 0
        self._free = list(range(max_rows - 1, -1, -1))

    def plan(self) -> Plan:
        """The next round; its rows' cursors are moved as if it had run."""
        plan = Plan()
        preempted = self.preempted
        for row in list(self.rows):
            if row.slot < 0 or row.prefilling or row.spent:
                continue
            if self._reserve(row, row.cursor + 1, plan):
                plan.segments.append(self._advance(row, 1))
        budget = PREFILL_TOKENS
        for row in self.rows:
            if row.prefilling and budget:
                count = min(budget, len(row.feed) - row.cursor)
                plan.segments.append(self._advance(row, count))
                budget -= count
        while budget and self.preempted == preempted and (row := self._admit()):
            count = min(budget, len(row.feed))
            plan.segments.append(self._advance(row, count))
            budget -= count
        return plan

    def remove(self, row: Row) -> None:
        """Take a row out, running or waiting, and free what it holds.

        Rounds in flight may still write to its extent; they run before anything that a new owner writes.
        """
        if row.slot < 0:
            self.waiting.remove(row)
            return
        assert row.extent is not None
        self.rows.remove(row)
        self.extents.release(row.extent)
        self._free.append(row.slot)
        row.slot, row.extent = -1, None

    def _advance(self, row: Row, count: int) -> Segment:
        row.cursor += count
        return Segment(row, count, yields=not row.prefilling)

    def _admit(self) -> Row | None:
        """Start the first waiting row if a place and an extent are free."""
        if not self.waiting or not self._free:
            return None
        row = self.waiting[0]
        feed = row.request.tokens + tuple(row.generated)
        extent = self.extents.allocate(min(len(feed) + HEADROOM, row.largest))
        if extent is None:
            return None
        self.waiting.popleft()
        row.feed, row.extent, row.cursor, row.slot = feed, extent, 0, self._free.pop()
        self.rows.append(row)
        return row

    def _reserve(self, row: Row, length: int, plan: Plan) -> bool:
        """Make the row's extent hold `length` slots: grow it, move it, or preempt the youngest rows for it.

        False when the row itself had to give way.
        """
        while row.extent is not None and row.extent.length < length:
            for wanted in (min(2 * row.extent.length, row.largest), length):
                if grown := self.extents.extend(row.extent, wanted):
                    row.extent = grown
                    break
                if moved := self.extents.allocate(wanted):
                    plan.moves.append(Move(row.extent, moved, length - 1))
                    self.extents.release(row.extent)
                    row.extent = moved
                    self.moved += 1
                    break
            else:
                self._preempt(self.rows[-1])
        return row.extent is not None

    def _preempt(self, row: Row) -> None:
        """Send a running row back to the head of the queue; what it generated becomes part of its prefill."""
        self.remove(row)
        self.waiting.appendleft(row)
        self.preempted += 1
