"""MLX's operations on the views that the engine hands them give what they give on copies, on whatever backend runs.

Some do not on CUDA: its rope takes over the strides of its input, so that a broadcast view makes all tokens write to
one place. The engine hands it a copy; these tests see whether any other operation that it uses has such a fault. Its
product of rows by sorted experts has one: see `laid_apart` and the tests of experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.gated_delta import compute_g

from draftmill.engine.models.layers import gated, swiglu, turns
from draftmill.engine.models.linear import join
from draftmill.kernels.fused.rotary import Layout

HALF = [] if mx.default_device() == mx.cpu else [mx.float16, mx.bfloat16]
DTYPES = pytest.mark.parametrize("dtype", [mx.float32, *HALF])
BOUNDS = {mx.float32: 2e-3, mx.float16: 4e-3, mx.bfloat16: 2e-2}  # float32 may go through TF32 units

Operation = Callable[..., mx.array]


def largest(array: mx.array) -> float:
    return float(mx.abs(array.astype(mx.float32)).max())


def same(operation: Operation, views: Sequence[mx.array], dtype: mx.Dtype = mx.float32) -> None:
    """The operation of views, first in one graph with them, then of evaluated ones, as of copies."""
    copies = [mx.contiguous(view) for view in views]
    mx.eval(copies)
    expected = operation(*copies).astype(mx.float32)
    for _ in range(2):
        output = operation(*views).astype(mx.float32)
        assert largest(output - expected) < BOUNDS[dtype] * max(largest(expected), 1e-6)


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_turns_are_those_of_each_position_alone(count: int) -> None:
    rope = nn.RoPE(64, traditional=False, base=10000.0)
    positions = (mx.arange(count) * 37 + 3) % 911
    together = turns(rope, Layout(4, 2, 64, 64), positions)
    alone = [turns(rope, Layout(4, 2, 64, 64), positions[i : i + 1])[0] for i in range(count)]
    assert largest(together - mx.stack(alone)) < 1e-5
    angles = positions[:, None] * (10000.0 ** (-mx.arange(0, 64, 2) / 64))
    expected = mx.stack([mx.cos(angles), mx.sin(angles)], axis=1)
    assert largest(together - expected) < 1e-3  # of arguments up to 911


@DTYPES
def test_norm_of_heads_cut_out_of_a_joint_projection(dtype: mx.Dtype) -> None:
    projected = mx.random.normal((9, 8 * 64)).astype(dtype)
    weight = mx.random.uniform(0.5, 1.5, (64,)).astype(dtype)
    for begin, end in ((0, 256), (256, 384), (384, 512)):
        heads = projected[:, begin:end].reshape(9, -1, 64)
        same(lambda x: mx.fast.rms_norm(x, weight, 1e-6), [heads], dtype)
        same(lambda x: mx.fast.rms_norm(x, None, 1e-6), [heads[..., :32]], dtype)


@DTYPES
@pytest.mark.parametrize("queries", [1, 5, 16])
@pytest.mark.parametrize(("start", "length"), [(0, 40), (33, 40), (512, 256), (700, 300)])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_attention_over_a_slice_of_a_pool(
    dtype: mx.Dtype, queries: int, start: int, length: int, kv_heads: int
) -> None:
    pools = [mx.random.normal((1024, kv_heads, 64)).astype(dtype) for _ in range(2)]
    packed = mx.random.normal((20, 4, 64)).astype(dtype)
    mx.eval(pools, packed)
    q = packed[3 : 3 + queries].transpose(1, 0, 2)[None]
    k, v = (pool[start : start + length].transpose(1, 0, 2)[None] for pool in pools)
    seen = mx.arange(length)[None] <= (length - queries + mx.arange(queries))[:, None]
    for mask in ("causal", seen):
        attend = partial(mx.fast.scaled_dot_product_attention, scale=0.125, mask=mask)
        same(attend, [q, k, v], dtype)


@DTYPES
def test_halves_of_a_joint_projection(dtype: mx.Dtype) -> None:
    x = mx.random.normal((7, 256)).astype(dtype)
    gate, up = mx.split(x, 2, axis=-1)
    same(swiglu, [gate, up], dtype)
    gate = x[:, :256].reshape(7, 2, 128)[..., 64:].reshape(7, 128)
    same(gated, [gate, x[:, 64:192]], dtype)
    same(lambda a: compute_g(mx.zeros(4), a, mx.zeros(4)), [x[:, 200:204]], dtype)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_layers_whose_weights_are_views_of_a_joint_one(bits: int) -> None:
    layers: list[Any] = [nn.Linear(128, size, bias=False) for size in (64, 32, 96)]
    x = mx.random.normal((5, 128))
    if bits < 16:
        layers = [nn.QuantizedLinear.from_linear(layer, 32, bits) for layer in layers]
    before = [layer(x) for layer in layers]
    mx.eval(before)
    joint = join(layers)
    after = [layer(x) for layer in layers]
    for a, b in zip(before, after, strict=True):
        assert largest(a - b) < 2e-3
    assert largest(joint(x) - mx.concatenate(before, axis=-1)) < 2e-3


@DTYPES
def test_writing_views_into_a_pool(dtype: mx.Dtype) -> None:
    projected = mx.random.normal((6, 4 * 2 * 64)).astype(dtype)
    values = projected[:, 384:].reshape(6, 2, 64)
    slots = mx.array([9, 3, 4, 30, 31, 11])

    def write(values: mx.array) -> mx.array:
        pool = mx.zeros((40, 2, 64), dtype)
        pool[slots] = values
        return pool

    same(write, [values], dtype)


@DTYPES
def test_choosing_among_logits_that_are_rows_of_others(dtype: mx.Dtype) -> None:
    logits = mx.random.normal((12, 96)).astype(dtype)[2:9]
    for operation in (
        lambda x: mx.argmax(x, axis=-1),
        lambda x: mx.sort(x, axis=-1),
        lambda x: mx.softmax(x.astype(mx.float32), axis=-1),
        lambda x: mx.logsumexp(x, axis=-1),
        lambda x: mx.cumsum(x.astype(mx.float32), axis=-1),
        lambda x: mx.topk(x, 5, axis=-1).sum(axis=-1),
    ):
        same(operation, [logits], dtype)
        same(operation, [mx.broadcast_to(logits[:1], (4, 96))], dtype)
