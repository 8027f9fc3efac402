"""What tests of recurrent layers share: errors, packed spans, and rounds of rows at random."""

from __future__ import annotations

import random
from collections.abc import Iterator

import mlx.core as mx

from draftmill.kernels.packing import Span


def error(result: mx.array, expected: mx.array) -> float:
    """The largest error, relative to the largest number."""
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    if not expected.size:
        return 0.0
    result, expected = result.astype(mx.float32), expected.astype(mx.float32)
    return float(mx.abs(result - expected).max() / mx.maximum(mx.abs(expected).max(), 1e-3))


def spans(rows: list[tuple[int, int, bool, bool]]) -> list[Span]:
    """Spans of (row, count, fresh, final)."""
    firsts = [sum(count for _, count, _, _ in rows[:i]) for i in range(len(rows))]
    return [
        Span(at, count, (), 0, row=row, fresh=fresh, final=final)
        for at, (row, count, fresh, final) in zip(firsts, rows, strict=True)
    ]


def random_rounds(chance: random.Random, turns: int) -> Iterator[tuple[list[Span], list[int]]]:
    """Spans of five rows that accept some of what they tried, begin anew, come back and prefill, with what each
    accepted of its last round.
    """
    lengths = dict.fromkeys(range(5), 0)
    for turn in range(turns):
        rows = list(range(5))
        chance.shuffle(rows)
        drawn = []
        for row in rows:
            final = chance.random() < 0.3
            count = chance.randint(1, 40) if final else chance.randint(1, 16)
            drawn.append((row, count, turn == 0 or chance.random() < 0.1, final))
        accepted = [chance.randint(0, lengths[row] or 9) for row in rows]
        yield spans(drawn), accepted
        lengths = {row: 0 if final else count for row, count, _, final in drawn}
