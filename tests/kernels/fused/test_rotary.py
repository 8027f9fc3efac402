"""Rotated heads against mlx's own norm and rope, and the kernel against its reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from draftmill.engine.models.layers import turns
from draftmill.kernels.fused.rotary import Layout, Norms, fits, rotate, rotate_by_kernel, split
from draftmill.kernels.packing import Packing, Span
from draftmill.kernels.pages.pool import LayerPool
from tests.kernels.forms import EXACTLY, IN_HALF_PRECISION, Form

LAYOUTS = {
    "plain": Layout(4, 2, 64, 64),
    "normed": Layout(3, 1, 128, 128, epsilon=1e-6),
    "partial, gated": Layout(2, 2, 256, 64, epsilon=1e-5, stride=512),
    "values normed": Layout(4, 2, 64, 64, epsilon=1e-6, values_normed=True),
    "keys as values": Layout(4, 1, 512, 512, epsilon=1e-6, values_normed=True, keys_as_values=True),
}


def given(layout: Layout, count: int, dtype: mx.Dtype = mx.float32) -> tuple[mx.array, mx.array, Norms | None]:
    mx.random.seed(count)
    positions = mx.random.randint(0, 5000, (count,))
    frequencies = 1e4 ** -(mx.arange(layout.rotated // 2) / (layout.rotated // 2))
    angles = positions[:, None] * frequencies
    turns = mx.stack([mx.cos(angles), mx.sin(angles)], axis=1)
    query_weight, key_weight = (mx.random.uniform(0.5, 1.5, (layout.dim,)).astype(dtype) for _ in range(2))
    projected = mx.random.normal((count, layout.width)).astype(dtype)
    return projected, turns, (query_weight, key_weight) if layout.epsilon else None


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_reference_is_a_norm_and_a_rope(layout: Layout) -> None:
    count = 5
    projected, _, norms = given(layout, count)
    positions = mx.array([0, 1, 17, 900, 4000])
    rope: Any = nn.RoPE(layout.rotated, traditional=False, base=1e4)
    units = mx.concatenate(
        [mx.ones((count, 1, 1, layout.rotated // 2)), mx.zeros((count, 1, 1, layout.rotated // 2))], -1
    )
    turns = rope(units, offset=positions).reshape(count, 2, -1)
    queries = projected[:, : layout.keys].reshape(count, layout.heads, layout.step)[..., : layout.dim]
    keys, *values = projected[:, layout.keys :].reshape(count, -1, layout.kv_heads, layout.dim).swapaxes(0, 1)
    found = split(projected, turns, norms, layout)
    for states, rotated, i in zip((queries, keys), found, (0, 1), strict=False):
        normed = mx.fast.rms_norm(states, norms[i], layout.epsilon) if norms and layout.epsilon else states
        expected = rope(normed[:, :, None], offset=positions)[:, :, 0]
        assert rotated.shape == expected.shape
        assert mx.allclose(rotated, expected, 1e-5, 1e-5)
    as_they_are = values[0] if values else keys
    expected = nn.RMSNorm(layout.dim, 1e-6)(as_they_are) if layout.values_normed else as_they_are
    assert mx.allclose(found[2], expected, 1e-5, 1e-5)


def check(form: Form, layout: Layout, count: int) -> None:
    projected, turns, norms = given(layout, count, form.dtype)
    assert fits(layout, form.dtype)
    with mx.stream(mx.cpu):
        exact: Any = norms and tuple(weight.astype(mx.float32) for weight in norms)
        expected = split(projected.astype(mx.float32), turns, exact, layout)
    pool = LayerPool(3, layout.kv_heads, layout.dim, form.dtype, form.launch)
    packing = Packing.of([Span(0, count, (2, 0), 60 + count)], mx.arange(60, 60 + count, dtype=mx.int32))
    queries = rotate_by_kernel(projected, turns, norms, layout, pool, packing.places)
    keys, values = (array[0].swapaxes(0, 1) for array in pool.gather(packing.rows, 60 + count, {}))
    for result, right in zip((queries, keys[60:], values[60:]), expected, strict=True):
        assert (result.shape, result.dtype) == (right.shape, form.dtype)
        error = mx.abs(result.astype(mx.float32) - right).max() / mx.abs(right).max()
        assert float(error) < form.bound
    for array in (keys, values):
        assert not array[:60].any()  # nothing else is written


@pytest.mark.parametrize("rotated", [64, 32])
def test_the_reference_turns_neighbours(rotated: int) -> None:
    layout = Layout(4, 2, 64, rotated, neighbours=True)
    positions = mx.array([0, 1, 17, 900, 4000])
    rope: Any = nn.RoPE(rotated, traditional=True, base=1e4)
    projected, _, _ = given(layout, 5)
    heads = projected[:, : layout.values].reshape(5, 6, 64)
    expected = rope(heads[:, :, None], offset=positions)[:, :, 0]
    queries, keys, _ = split(projected, turns(rope, layout, positions), None, layout)
    assert mx.allclose(mx.concatenate([queries, keys], axis=1), expected, 1e-5, 1e-5)
    assert not fits(layout, mx.float32)


@EXACTLY
@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 33])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_kernel_agrees(form: Form, layout: Layout, count: int) -> None:
    check(form, layout, count)


@EXACTLY
@pytest.mark.parametrize("count", [1, 7, 33])
def test_queries_alone_leave_the_pool_as_it_is(form: Form, count: int) -> None:
    """Of a layer that takes the keys and values of another one."""
    whole = LAYOUTS["normed"]
    layout = replace(whole, kv_heads=0)
    projected, turns, norms = given(whole, count, form.dtype)
    own = projected[:, : layout.width]
    pool = LayerPool(1, whole.kv_heads, whole.dim, form.dtype, form.launch)
    packing = Packing.of([Span(0, count, (0,), count)], mx.arange(count, dtype=mx.int32))
    assert fits(layout, form.dtype)
    queries = rotate_by_kernel(own, turns, norms, layout, pool, packing.places)
    expected, _, _ = split(projected, turns, norms, whole)
    assert mx.array_equal(rotate(own, turns, norms, layout, pool, packing.places), expected)
    error = mx.abs(queries - expected).max().astype(mx.float32) / mx.abs(expected).max().astype(mx.float32)
    assert float(error) < 2 * form.bound
    assert not mx.concatenate([*pool.gather(packing.rows, count, {})]).any()


@IN_HALF_PRECISION
def test_half_precision(form: Form) -> None:
    check(form, replace(LAYOUTS["normed"], epsilon=1e-5), 5)


def test_what_does_not_fit() -> None:
    assert not fits(Layout(2, 1, 80, 80), mx.float32)
    assert not fits(Layout(2, 1, 64, 32), mx.float32)
