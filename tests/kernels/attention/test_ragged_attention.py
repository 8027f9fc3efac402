"""The attention kernel, emulated, against stock attention row by row."""

from __future__ import annotations

import random
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from draftmill.kernels.attention.ragged_attention import ragged_attention
from draftmill.kernels.attention.stock_attention import attention_by_row
from draftmill.kernels.packing import Packing, Span
from tests.kernels.emulator import Fault, on_cpu
from tests.kernels.forms import EMULATED, EXACTLY, IN_HALF_PRECISION, Form

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
    seed: int = 0,
) -> None:
    """Compare the kernel over packed rows with stock attention in float32, relative to the largest output."""
    rng = np.random.default_rng(seed)
    spans, positions, limits, slot = [], [], [], 3
    for cursor, count in rows:
        length = cursor + count + (0 if exact else int(rng.integers(0, 40)))
        spans.append(Span(len(positions), count, slot, length, exact))
        positions += range(cursor, cursor + count)
        limits += [cursor + count - 1] * count
        slot += length + int(rng.integers(0, 3))
    at = mx.array(positions, mx.int32)
    packing = Packing(tuple(spans), at, at, limits=mx.array(limits, mx.int32) if block else None)
    shapes = [(len(positions), heads[0], dim), (slot, heads[1], dim), (slot, heads[1], dim)]
    q, k, v = (mx.array(rng.normal(size=shape), mx.float32).astype(form.dtype) for shape in shapes)
    result = ragged_attention(q, k, v, packing, dim**-0.5, window, form.launch)
    assert result.dtype == form.dtype
    q, k, v = (array.astype(mx.float32) for array in (q, k, v))
    with mx.stream(mx.cpu):  # a GPU's matrix units may round float32
        expected = attention_by_row(q, k, v, packing, dim**-0.5, window)
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
    ("dim", "heads"), [(64, (32, 1)), (128, (8, 2)), (128, (12, 1)), (256, (4, 1)), (256, (16, 1))]
)
@pytest.mark.parametrize("rows", [[(40, 1), (7, 1)], [(150, 16), (0, 3)]])
def test_head_dimensions_and_groups(form: Form, dim: int, heads: tuple[int, int], rows: list[Row]) -> None:
    check(form, rows, dim=dim, heads=heads)


@IN_HALF_PRECISION
@pytest.mark.parametrize("dim", [64, 256])
def test_half_precision(form: Form, dim: int) -> None:
    check(form, [(200, 8), (31, 1)], dim=dim, block=True)


BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


@EMULATED
@pytest.mark.parametrize("index", range(5))
def test_every_barrier_is_needed(index: int) -> None:
    def launch(kernel, *rest):
        parts = kernel.body.split(BARRIER)
        assert len(parts) == 6
        return on_cpu(replace(kernel, body=BARRIER.join(parts[: index + 1]) + BARRIER.join(parts[index + 1 :])), *rest)

    queries, keys = mx.random.normal((3, 2, 128)), mx.random.normal((70, 2, 128))
    at = mx.array([67, 68, 69], mx.int32)
    with pytest.raises(Fault, match=r"race|nothing wrote it"):
        ragged_attention(queries, keys, keys, Packing((Span(0, 3, 0, 70),), at, at), 1.0, launch=launch)


@EMULATED
def test_keys_are_split_and_combined() -> None:
    launches: list[tuple[str, tuple[int, int, int]]] = []

    def launch(kernel, inputs, constants, groups, *rest):
        launches.append((kernel.name, groups))
        return on_cpu(kernel, inputs, constants, groups, *rest)

    rng = np.random.default_rng(0)
    queries, keys, values = (mx.array(rng.normal(size=(n, 2, 64)), mx.float32) for n in (5, 700, 700))
    spans = (Span(0, 4, 0, 600), Span(4, 1, 650, 9))
    at = mx.array([596, 597, 598, 599, 8], mx.int32)
    packing = Packing(spans, at, at)
    for window, splits in ((None, 4), (300, 2)):
        launches.clear()
        result = ragged_attention(queries, keys, values, packing, 0.125, window, launch)
        assert launches == [("attend", (2, 2, splits)), ("combine", (3, 1, 1))]
        assert mx.allclose(result, attention_by_row(queries, keys, values, packing, 0.125, window), 1e-5, 1e-6)


@EXACTLY
def test_long_spans_stay_with_stock_attention(form: Form) -> None:
    check(form, [(3, 33), (5, 2), (9, 1), (0, 50), (8, 4)])


@EMULATED
def test_large_scores_do_not_overflow() -> None:
    rng = np.random.default_rng(1)
    queries, keys, values = (mx.array(rng.normal(size=(n, 2, 64)) * 40, mx.float32) for n in (3, 70, 70))
    at = mx.array([67, 68, 69], mx.int32)
    packing = Packing((Span(0, 3, 0, 70),), at, at)
    result = ragged_attention(queries, keys, values, packing, 1.0, launch=on_cpu)
    assert mx.allclose(result, attention_by_row(queries, keys, values, packing, 1.0), 1e-4, 1e-3)


@EMULATED
def test_limits_end_with_the_row() -> None:
    mx.random.seed(2)
    queries, keys, values = (mx.random.normal((n, 2, 64)) for n in (2, 90, 90))
    at = mx.array([38, 39], mx.int32)
    packing = Packing((Span(0, 2, 5, 40, exact=False),), at, at, limits=at + 30)
    result = ragged_attention(queries, keys, values, packing, 1.0, launch=on_cpu)
    assert mx.allclose(result, attention_by_row(queries, keys, values, packing, 1.0), 1e-5, 1e-5)
