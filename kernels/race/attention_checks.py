"""What every form of attention must get right before it is timed: rounds as ragged as real ones."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import mlx.core as mx

from ..packing import FEW, Packing, Span
from ..pages.sizes import pages_for

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
    """Rows of (tokens before the round, tokens of it), with so much slack; in a `block` every token sees all of it.

    Their pages follow each other backwards.
    """
    lengths = [before + count for before, count in rows]
    ends = accumulate((pages_for(length + slack) for length in lengths), initial=0)
    begins = accumulate((count for _, count in rows), initial=0)
    spans = [
        Span(begin, count, range(end + pages_for(length + slack) - 1, end - 1, -1), length + slack, exact=not slack)
        for begin, (_, count), end, length in zip(begins, rows, ends, lengths, strict=False)
    ]
    packing = Packing.of(spans, mx.array([b + i for b, count in rows for i in range(count)], mx.int32))
    limits = [length - 1 for length, (_, count) in zip(lengths, rows, strict=True) for _ in range(count)]
    return packing.limited(mx.array(limits, mx.int32)) if block else packing
