"""The attention kernel, emulated, against stock attention row by row."""

from __future__ import annotations

import random
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from draftmill.kernels.attention.manner import Manner
from draftmill.kernels.attention.ragged_attention import ragged_attention
from draftmill.kernels.attention.stock_attention import attention_by_row
from draftmill.kernels.gpu.source import Launch
from draftmill.kernels.packing import Packing
from draftmill.kernels.pages.pool import LayerPool
from tests.kernels.emulator import Fault, on_cpu
from tests.kernels.forms import EMULATED, EXACTLY, IN_HALF_PRECISION, Form
from tests.kernels.pools import filled, packed, random_pool

Row = tuple[int, int]  # tokens before this round, tokens of this round


def check(
    form: Form,
    rows: list[Row],
    *,
    heads: tuple[int, int] = (4, 2),
    dim: int = 64,
    window: int | None = None,
    block: bool = False,
    exact: bool = True,
    sinks: bool = False,
    cap: float | None = None,
    seed: int = 0,
) -> None:
    """Compare the kernel over packed rows with stock attention in float32, relative to the largest output."""
    rng = np.random.default_rng(seed)
    packing = packed([(*row, 0 if exact else int(rng.integers(0, 40))) for row in rows], rng, exact)
    if block:
        ends = [cursor + count - 1 for cursor, count in rows for _ in range(count)]
        packing = packing.limited(mx.array(ends, mx.int32))
    queries = mx.array(rng.normal(size=(packing.positions.size, heads[0], dim)), mx.float32).astype(form.dtype)
    pages = [span.pages for span in packing.spans]
    keys, values = (array.astype(form.dtype) for array in random_pool(packing.spans, heads[1], dim, rng))
    each = mx.array(rng.normal(size=heads[0]) * 3, mx.float32).astype(form.dtype) if sinks else None
    pool = filled(pages, keys, values, form.launch)
    result = ragged_attention(queries, pool, packing, Manner(dim**-0.5, window, each, cap))
    assert result.dtype == form.dtype
    queries, keys, values = (array.astype(mx.float32) for array in (queries, keys, values))
    with mx.stream(mx.cpu):  # a GPU's matrix units may round float32
        each = None if each is None else each.astype(mx.float32)
        expected = attention_by_row(queries, filled(pages, keys, values), packing, Manner(dim**-0.5, window, each, cap))
    assert float(mx.abs(result - expected).max() / mx.abs(expected).max()) < form.bound


EDGES: list[list[Row]] = [
    [(0, 1)],
    [(30, 1)],
    [(31, 1)],
    [(32, 1)],
    [(16, 16)],
    [(17, 16)],
    [(300, 16)],
    [(0, 16), (100, 1), (31, 2), (63, 5)],
    [(i * 9, 1 if i % 2 else 16) for i in range(16)],
    [(5, 32), (0, 7)],
]


@EXACTLY
@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("window", [None, 1, 31, 32, 33])
@pytest.mark.parametrize("rows", EDGES)
def test_edges(form: Form, rows: list[Row], window: int | None, block: bool) -> None:
    check(form, rows, window=window, block=block)


@EXACTLY
@pytest.mark.parametrize(("sinks", "cap"), [(True, None), (False, 1.5)])
@pytest.mark.parametrize("window", [None, 1, 33])
@pytest.mark.parametrize("rows", [EDGES[0], *EDGES[6:]])
def test_sinks_and_caps(form: Form, rows: list[Row], window: int | None, sinks: bool, cap: float | None) -> None:
    for heads in ((4, 2), (16, 2)):  # so few sinks, and as many as a constant buffer does not hold
        check(form, rows, heads=heads, window=window, sinks=sinks, cap=cap)


@EXACTLY
@pytest.mark.parametrize("seed", range(10))
def test_random_rounds(form: Form, seed: int) -> None:
    chance = random.Random(seed)
    for turn in range(15):
        rows = [(chance.randint(0, 80), chance.randint(1, 17)) for _ in range(chance.randint(1, 5))]
        heads = chance.choice([(2, 2), (3, 1), (4, 2), (8, 1)])
        window = chance.choice([None, None, chance.randint(1, 90)])
        block, exact = chance.random() < 0.3, chance.random() < 0.5
        check(form, rows, heads=heads, window=window, block=block, exact=exact, seed=turn)


@EXACTLY
@pytest.mark.parametrize(
    ("dim", "heads"),
    [(64, (32, 1)), (128, (8, 2)), (128, (12, 1)), (256, (4, 1)), (256, (16, 1)), (512, (16, 1))],
)
@pytest.mark.parametrize("rows", [[(40, 1), (7, 1)], [(150, 16), (0, 3)]])
def test_head_dimensions_and_groups(form: Form, dim: int, heads: tuple[int, int], rows: list[Row]) -> None:
    check(form, rows, dim=dim, heads=heads)


@EXACTLY
@pytest.mark.parametrize(("window", "block"), [(None, False), (33, False), (5, True)])
@pytest.mark.parametrize("rows", [[(31, 2)], [(300, 5)], [(0, 16), (100, 1), (63, 5)]])
def test_queries_in_parts(form: Form, rows: list[Row], window: int | None, block: bool) -> None:
    """Of 512 dimensions, with whatever else a layer can have; some keys are split."""
    check(form, rows, dim=512, window=window, block=block, exact=False)
    check(form, rows, dim=512, window=window, block=block, sinks=True)
    check(form, rows, dim=512, window=window, block=block, cap=1.5)


@IN_HALF_PRECISION
@pytest.mark.parametrize("dim", [64, 256, 512])
def test_half_precision(form: Form, dim: int) -> None:
    check(form, [(200, 8), (31, 1)], dim=dim, block=True)
    check(form, [(200, 8), (31, 1)], dim=dim, sinks=True)
    check(form, [(200, 8), (31, 1)], dim=dim, cap=50.0)


@EMULATED
def test_scores_far_beyond_their_cap() -> None:
    queries, pool, packing = three_queries(on_cpu, 40)
    result = ragged_attention(queries, pool, packing, Manner(1.0, cap=5.0))
    assert mx.allclose(result, attention_by_row(queries, pool, packing, Manner(1.0, cap=5.0)), 1e-4, 1e-4)


BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


def three_queries(launch: Launch, scale: float = 1) -> tuple[mx.array, LayerPool, Packing]:
    """Queries of one row, its pool that `launch` reads, and how they are packed."""
    rng = np.random.default_rng(1)
    packing = packed([(67, 3, 0)], rng)
    queries = mx.array(rng.normal(size=(3, 2, 64)) * scale, mx.float32)
    pool = filled([packing.spans[0].pages], *random_pool(packing.spans, 2, 64, rng, scale), on_cpu)
    pool.launch = launch
    return queries, pool, packing


@EMULATED
@pytest.mark.parametrize("index", range(5))
def test_every_barrier_is_needed(index: int) -> None:
    def launch(kernel, *rest):
        parts = kernel.body.split(BARRIER)
        assert len(parts) == 6
        return on_cpu(replace(kernel, body=BARRIER.join(parts[: index + 1]) + BARRIER.join(parts[index + 1 :])), *rest)

    with pytest.raises(Fault, match=r"race|nothing wrote it"):
        ragged_attention(*three_queries(launch), Manner(1.0))


@EMULATED
def test_keys_are_split_and_combined() -> None:
    launches: list[tuple[str, tuple[int, int, int]]] = []

    def launch(kernel, inputs, constants, groups, *rest):
        launches.append((kernel.name, groups))
        return on_cpu(kernel, inputs, constants, groups, *rest)

    rng = np.random.default_rng(0)
    packing = packed([(596, 4, 0), (8, 1, 0)], rng)
    queries = mx.array(rng.normal(size=(5, 2, 64)), mx.float32)
    pages, held = [span.pages for span in packing.spans], random_pool(packing.spans, 2, 64, rng)
    pool, stock = filled(pages, *held, on_cpu), filled(pages, *held)
    pool.launch = launch
    for window, splits in ((None, 4), (300, 2)):
        launches.clear()
        result = ragged_attention(queries, pool, packing, Manner(0.125, window))
        assert launches == [("attend", (2, 2, splits)), ("combine", (3, 1, 1))]
        assert mx.allclose(result, attention_by_row(queries, stock, packing, Manner(0.125, window)), 1e-5, 1e-6)


@EXACTLY
def test_long_spans_stay_with_stock_attention(form: Form) -> None:
    check(form, [(3, 33), (5, 2), (9, 1), (0, 50), (8, 4)])


@EMULATED
def test_large_scores_do_not_overflow() -> None:
    queries, pool, packing = three_queries(on_cpu, 40)
    result = ragged_attention(queries, pool, packing, Manner(1.0))
    assert mx.allclose(result, attention_by_row(queries, pool, packing, Manner(1.0)), 1e-4, 1e-3)


@EMULATED
def test_limits_end_with_the_row() -> None:
    queries, pool, packing = three_queries(on_cpu)
    limited = packing.limited(packing.positions + 30)
    result = ragged_attention(queries, pool, limited, Manner(1.0))
    inexact = replace(limited, spans=tuple(replace(span, exact=False) for span in limited.spans))
    assert mx.allclose(result, attention_by_row(queries, pool, inexact, Manner(1.0)), 1e-5, 1e-5)
