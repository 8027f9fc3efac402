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
    units = mx.concatenate([mx.ones(half), mx.zeros(layout.dim - half)])
    rotated = rope(mx.broadcast_to(units, (positions.shape[0], 1, 1, layout.dim)), offset=positions)
    return mx.contiguous(rotated[:, 0, 0, : layout.rotated].reshape(-1, 2, half))


@partial(mx.compile, shapeless=True)
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return nn.silu(gate) * up


@partial(mx.compile, shapeless=True)
def gated(gate: mx.array, mixed: mx.array) -> mx.array:
    return mixed * mx.sigmoid(gate)
