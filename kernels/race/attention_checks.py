"""What every form of attention must get right before it is timed: rounds as ragged as real ones."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import mlx.core as mx

from ..packing import FEW, Packing, Span

WINDOW = 24
"""Of a sliding layer: within a row's keys, and within the queries of a longer block."""

SLACK = 17
"""Keys by which the host's bound of an inexact span is too high."""


class Check(NamedTuple):
    """A packing and the window of the layer that it goes through."""

    packing: Packing
    window: int | None


def checks(queries: int) -> list[Check]:
    """Rounds whose longest span has about so many queries: rows with long, short and no past, of all lengths.

    They are the same for all numbers of rows and keys: each length not seen before costs stock attention on CUDA a
    plan, of up to 36 ms.
    """
    rows = [(300, queries), (31, -(-queries // 3)), (0, 1)] if queries <= FEW else [(130, 2 * FEW), (0, FEW + 1)]
    return [
        Check(_packing(rows, 0, False), None),
        Check(_packing(rows, 0, False), WINDOW),
        Check(_packing(rows, 0, True), None),
        Check(_packing(rows, SLACK, False), None),
        Check(_packing(rows, SLACK, True), WINDOW),
    ]


def _packing(rows: list[tuple[int, int]], slack: int, block: bool) -> Packing:
    """Rows of (tokens before the round, tokens of it), with so much slack; in a `block` every token sees all of it."""
    lengths = [before + count for before, count in rows]
    extents = accumulate((length + slack + 1 for length in lengths), initial=1)
    begins = accumulate((count for _, count in rows), initial=0)
    spans = tuple(
        Span(begin, count, extent, length + slack, exact=not slack)
        for begin, (_, count), extent, length in zip(begins, rows, extents, lengths, strict=False)
    )
    positions = mx.array([before + i for before, count in rows for i in range(count)], mx.int32)
    ends = [length - 1 for length, (_, count) in zip(lengths, rows, strict=True) for _ in range(count)]
    return Packing(spans, positions, positions, limits=mx.array(ends, mx.int32) if block else None)
