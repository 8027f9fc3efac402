"""Draft context that waits until its row drafts, so that a row which does not draft pays nothing for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from ...kernels.gpu.launch import on_device
from ...kernels.pages.places import Places, tabled
from ..schedule.row import Row

ROUNDS = 16
"""Most rounds whose taps wait: each takes launches of its own when its context is written."""


@dataclass(eq=False)
class RoundTaps:
    """A round's taps [N, hidden] of each tapped layer and positions [N], for which so many rows still have a use."""

    states: list[mx.array]
    positions: mx.array
    rows: int


class RowTaps(NamedTuple):
    """A row's tokens in a round."""

    taps: RoundTaps
    tokens: range


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

    def hold(self, states: list[mx.array], positions: mx.array, rows: Sequence[tuple[Row, int]]) -> None:
        """Keep a round's taps: of each row so many tokens, one row after another."""
        taps, first = RoundTaps(states, positions, len(rows)), 0
        for row, count in rows:
            self._rows.setdefault(row, []).append(RowTaps(taps, range(first, first + count)))
            first += count
        self.held += first
        self.rounds += 1

    def take(self, rows: Sequence[Row]) -> ContextWrite | None:
        """What these rows lack, to be written to the pages that they have now."""
        rows = [row for row in rows if row in self._rows]
        if not rows:
            return None
        table, firsts = tabled([row.pages for row in rows])
        indices: dict[RoundTaps, list[int]] = {}
        starts: dict[RoundTaps, list[int]] = {}
        for row, first in zip(rows, firsts, strict=True):
            for taps, tokens in self.drop(row):
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

    def take_if_full(self) -> ContextWrite | None:
        """What all rows lack, if there is too much of it."""
        return self.take(list(self._rows)) if self.held > self.most or self.rounds > ROUNDS else None

    def drop(self, row: Row) -> list[RowTaps]:
        """Hold nothing more of a row; returns what there was."""
        held = self._rows.pop(row, [])
        for taps, _ in held:
            taps.rows -= 1
            if not taps.rows:
                self.held -= taps.positions.size
                self.rounds -= 1
        return held

    def clear(self) -> None:
        """Hold nothing."""
        for row in list(self._rows):
            self.drop(row)
