"""Steps that targets and drafts share."""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...kernels.fused.rotary import Layout


def turns(rope: Any, layout: Layout, positions: mx.array) -> mx.array:
    """What a rope makes of the unit vectors of each pair: its cosines and sines [N, 2, rotated / 2]."""
    half = layout.rotated // 2
    pairs = mx.stack([mx.ones(half), mx.zeros(half)], axis=1 if layout.neighbours else 0)
    units = mx.concatenate([pairs.flatten(), mx.zeros(layout.dim - layout.rotated)])
    # A copy for each token: MLX's CUDA rope writes into memory laid out as its input is, so that the tokens of a
    # broadcast view would all be written to one place, and one token's position would win.
    units = mx.contiguous(mx.broadcast_to(units, (positions.shape[0], 1, 1, layout.dim)))
    rotated = rope(units, offset=positions)[:, 0, 0, : layout.rotated]
    if layout.neighbours:
        return mx.contiguous(rotated.reshape(-1, half, 2).transpose(0, 2, 1))
    return mx.contiguous(rotated.reshape(-1, 2, half))


@partial(mx.compile, shapeless=True)
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return nn.silu(gate) * up


@partial(mx.compile, shapeless=True)
def geglu(gate: mx.array, up: mx.array) -> mx.array:
    return nn.gelu_approx(gate) * up


@partial(mx.compile, shapeless=True)
def gated(gate: mx.array, mixed: mx.array) -> mx.array:
    return mixed * mx.sigmoid(gate)
