"""Ragged attention against attention written out in NumPy, row by row and together."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from draftmill.kernels.attention.manner import Manner
from draftmill.kernels.attention.stock_attention import attention_by_row, attention_together
from draftmill.kernels.operations import Operations
from draftmill.kernels.packing import Packing
from tests.kernels.pools import filled, packed, random_pool

HEADS, KV_HEADS, DIM = 4, 2, 16


def written_out(queries, keys, values, packing: Packing, window: int | None, sinks=None, cap=None) -> np.ndarray:
    queries, keys, values = (np.array(a, dtype=np.float64) for a in (queries, keys, values))
    positions = np.array(packing.positions)
    out = np.zeros((len(positions), HEADS * DIM))
    begin = 0
    for span in packing.spans:
        for n in range(span.query, span.query + span.count):
            first = 0 if window is None else max(0, positions[n] - window + 1)
            seen = slice(begin + first, begin + positions[n] + 1)
            for head in range(HEADS):
                kv = head // (HEADS // KV_HEADS)
                scores = keys[seen, kv] @ queries[n, head] / math.sqrt(DIM)
                scores = scores if cap is None else cap * np.tanh(scores / cap)
                weights = np.exp(scores)
                total = weights.sum() + (0 if sinks is None else np.exp(float(sinks[head])))
                out[n, head * DIM : (head + 1) * DIM] = weights @ values[seen, kv] / total
        begin += 64 * len(span.pages)
    return out


SINKS = mx.array([-1.0, 0.5, 2.0, 4.0])


@pytest.mark.parametrize("form", [attention_by_row, attention_together, Operations().attention])
@pytest.mark.parametrize(
    ("window", "sinks", "cap"), [(None, SINKS, None), (5, SINKS, None), (None, None, 2.0), (5, None, 0.5)]
)
@pytest.mark.parametrize("exact", [True, False])
def test_sinks_take_their_share_and_capped_scores_reach_so_far(form, window, sinks, cap, exact) -> None:
    check(form, window, [1, 40, 3, 150], exact, sinks, cap)


@pytest.mark.parametrize("form", [attention_by_row, attention_together, Operations().attention])
@pytest.mark.parametrize("window", [None, 5, 64])
@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [4, 1, 16], [1, 40, 3, 150], [33, 2]])
@pytest.mark.parametrize("exact", [True, False])
def test_packed_rows_see_their_own_pages(form, window, counts, exact) -> None:
    check(form, window, counts, exact)


def check(form, window, counts, exact, sinks=None, cap=None) -> None:
    rng = np.random.default_rng(sum(counts))
    # An inexact span's bound lies beyond what its positions reach.
    rows = [(int(rng.integers(0, 190)), count, 0 if exact else int(rng.integers(0, 9))) for count in counts]
    packing = packed(rows, rng, exact)
    queries = mx.array(rng.normal(size=(sum(counts), HEADS, DIM)), mx.float32)
    keys, values = random_pool(packing.spans, KV_HEADS, DIM, rng)
    pool = filled([span.pages for span in packing.spans], keys, values)
    result = form(queries, pool, packing, Manner(1 / math.sqrt(DIM), window, sinks, cap))
    expected = written_out(queries, keys, values, packing, window, sinks, cap)
    assert np.abs(np.array(result) - expected).max() < 1e-5
