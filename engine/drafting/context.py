"""Draft context that waits until its row drafts, so that a row which does not draft pays nothing for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from ...kernels.gpu.launch import on_device
from ...kernels.pages.places import Places, tabled
from ..schedule.row import Row
from ..schedule.scheduler import Segment

ROUNDS = 16
"""Most rounds whose taps wait: each takes launches of its own when its context is written."""


@dataclass(frozen=True)
class Seen:
    """What a round tells the draft: of its packed tokens the target's `hidden` states [N, hidden] behind the last norm,
    the residual stream [N, hidden] after each tapped layer, and positions [N]; its segments in packed order; and what
    those `yielding` emit [M, 1 + W], of each a count, and tokens of which so many are valid.
    """

    hidden: mx.array
    taps: list[mx.array]
    positions: mx.array
    segments: Sequence[Segment]
    yielding: Sequence[Segment]
    emitted: mx.array


@dataclass(eq=False)
class RoundTaps:
    """A round's taps [N, hidden] of each tapped layer and positions [N], for which so many rows still have a use; for
    an MTP head the `tokens` behind them [N].
    """

    states: list[mx.array]
    positions: mx.array
    rows: int
    tokens: mx.array | None = None


class RowTaps(NamedTuple):
    """A row's tokens in a round; what is behind the last of them, where the host knows better than the round."""

    taps: RoundTaps
    tokens: range
    known: tuple[int, ...] = ()


class ContextWrite(NamedTuple):
    """Tokens whose context is to be written: taps [N, taps * hidden], and their places."""

    taps: mx.array
    places: Places


class WaitingContext:
    """The taps of tokens whose context is not written yet, row by row; no two of a row at one position.

    Args:
        most: tokens whose taps should be held at most.
    """

    def __init__(self, most: int):
        self.most = most
        self.held = self.rounds = 0
        self._rows: dict[Row, list[RowTaps]] = {}

    def hold(self, seen: Seen) -> None:
        """Keep what a round tells of its tokens."""
        self._keep(RoundTaps(seen.taps, seen.positions, len(seen.segments)), seen.segments)

    def _keep(self, taps: RoundTaps, segments: Sequence[Segment]) -> None:
        first = 0
        for segment in segments:
            tokens = range(first, first + segment.count)
            self._rows.setdefault(segment.row, []).append(RowTaps(taps, tokens))
            first += segment.count
        self.held += first
        self.rounds += 1

    def settle(self, row: Row, tokens: Sequence[int]) -> None:
        """The row's last round turns out to emit these tokens, whatever it told."""

    def take(self, rows: Sequence[Row]) -> tuple[Any, ...] | None:
        """What these rows lack, to be written to the pages that they have now, as the drafter's `extend` takes it."""
        rows = [row for row in rows if row in self._rows]
        if not rows:
            return None
        table, firsts = tabled([row.pages for row in rows])
        indices: dict[RoundTaps, list[int]] = {}
        starts: dict[RoundTaps, list[int]] = {}
        for row, first in zip(rows, firsts, strict=True):
            for taps, tokens, _ in self.drop(row):
                indices.setdefault(taps, []).extend(tokens)
                starts.setdefault(taps, []).extend([first] * len(tokens))
        states: list[mx.array] = []
        positions: list[mx.array] = []
        for taps, wanted in indices.items():
            if wanted == list(range(taps.positions.size)):
                states.append(mx.concatenate(taps.states, axis=-1))
                positions.append(taps.positions)
            else:
                some = mx.array(wanted)
                states.append(mx.concatenate([layer[some] for layer in taps.states], axis=-1))
                positions.append(taps.positions[some])
        every = on_device([start for own in starts.values() for start in own])
        return ContextWrite(mx.concatenate(states), Places(table, every, mx.concatenate(positions)))

    def take_if_full(self) -> tuple[Any, ...] | None:
        """What all rows lack, if there is too much of it."""
        return self.take(list(self._rows)) if self.held > self.most or self.rounds > ROUNDS else None

    def drop(self, row: Row) -> list[RowTaps]:
        """Hold nothing more of a row; returns what there was."""
        held = self._rows.pop(row, [])
        for taps, *_ in held:
            taps.rows -= 1
            if not taps.rows:
                self.held -= taps.positions.size
                self.rounds -= 1
        return held

    def clear(self) -> None:
        """Hold nothing."""
        for row in list(self._rows):
            self.drop(row)
