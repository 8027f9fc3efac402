"""Pools of random keys and values whose rows have pages here and there."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from draftmill.kernels.gpu.source import Launch
from draftmill.kernels.packing import Packing, Span
from draftmill.kernels.pages.places import Places, tabled
from draftmill.kernels.pages.pool import LayerPool
from draftmill.kernels.pages.sizes import pages_for


def scattered(lengths: Sequence[int], rng: np.random.Generator) -> list[list[int]]:
    """Pages for rows of so many tokens, in any order, with others between them."""
    counts = [pages_for(length) for length in lengths]
    order = iter(rng.permutation(sum(counts) + 2).tolist())
    return [[next(order) for _ in range(count)] for count in counts]


def filled(pages: Sequence[Sequence[int]], keys: mx.array, values: mx.array, launch: Launch | None = None) -> LayerPool:
    """A pool of keys and values [tokens, KV, D], the slots of the first row first."""
    _, heads, dim = keys.shape
    pool = LayerPool(max(page for own in pages for page in own) + 1, heads, dim, keys.dtype, launch)
    table, firsts = tabled(pages)
    starts = [first for first, own in zip(firsts, pages, strict=True) for _ in range(64 * len(own))]
    positions = [position for own in pages for position in range(64 * len(own))]
    pool.write(Places(table, mx.array(starts, mx.int32), mx.array(positions, mx.int32)), keys, values)
    return pool


def random_pool(
    spans: Sequence[Span], heads: int, dim: int, rng: np.random.Generator, scale: float = 1
) -> tuple[mx.array, mx.array]:
    """Keys and values for all slots of the pages of some spans."""
    slots = 64 * sum(len(span.pages) for span in spans)
    keys, values = (mx.array(rng.normal(size=(slots, heads, dim)) * scale, mx.float32) for _ in range(2))
    return keys, values


def packed(rows: Sequence[tuple[int, int, int]], rng: np.random.Generator, exact: bool = True) -> Packing:
    """Rows of so many tokens before this round, so many in it, and a bound so far beyond these."""
    pages = scattered([cursor + count + beyond for cursor, count, beyond in rows], rng)
    spans: list[Span] = []
    positions: list[int] = []
    for (cursor, count, beyond), own in zip(rows, pages, strict=True):
        spans.append(Span(len(positions), count, own, cursor + count + beyond, exact))
        positions += range(cursor, cursor + count)
    return Packing.of(spans, mx.array(positions, mx.int32))
