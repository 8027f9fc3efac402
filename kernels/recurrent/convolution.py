"""Causal convolutions over packed rows, each with its own past: with norms before the gated delta rule, or gated."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .plan import Steps

EPSILON = 1e-6
"""Added to the sum of a head's squares."""


class Heads(NamedTuple):
    """Heads of queries and keys, and of values, and their sizes."""

    keys: int
    values: int
    key_dim: int
    value_dim: int

    @property
    def channels(self) -> int:
        """Inputs of the convolution: queries, keys, values."""
        return 2 * self.keys * self.key_dim + self.values * self.value_dim

    @property
    def width(self) -> int:
        """A token's joint projection: the channels, a gate for each value, and two numbers for each head of values."""
        return self.channels + self.values * (self.value_dim + 2)


Convolved = tuple[mx.array, mx.array, mx.array, mx.array]
"""Queries and keys [N, Hk, Dk], values [N, Hv, Dv], and the inputs that the round leaves."""


def convolved_heads(x: mx.array, weight: mx.array, inputs: mx.array, steps: Steps, heads: Heads) -> Convolved:
    """What the gated delta rule reads of packed x [N, W], which begins with the convolution's channels.

    `causal_convolution`, SiLU, and queries and keys of length one, queries divided by sqrt(Dk) besides. This is the
    plain-MLX reference.
    """
    count, keys = x.shape[0], heads.keys * heads.key_dim
    mixed, left = causal_convolution(x[:, : heads.channels], weight, inputs, steps)
    q, k, v = mx.split(nn.silu(mixed), [keys, 2 * keys], axis=-1)
    q, k = (array.reshape(count, heads.keys, heads.key_dim) for array in (q, k))
    scale, epsilon = heads.key_dim**-0.5, EPSILON / heads.key_dim
    q, k = (factor * mx.fast.rms_norm(array, None, epsilon) for factor, array in ((scale**2, q), (scale, k)))
    return q, k, v.reshape(count, heads.values, heads.value_dim), left


def gated_convolution(
    x: mx.array, weight: mx.array, bias: mx.array | None, inputs: mx.array, steps: Steps
) -> tuple[mx.array, mx.array]:
    """A convolution that is a layer by itself, of packed x [N, 3 C]: enters, leaves and values of each channel.

    Inputs of the `causal_convolution` are enters * values; outputs [N, C] are leaves * (convolved + bias [C]). Returns
    them and the inputs that the round leaves. This is the plain-MLX reference.
    """
    enters, leaves, values = mx.split(x, 3, axis=-1)
    mixed, left = causal_convolution(enters * values, weight, inputs, steps)
    return leaves * (mixed if bias is None else mixed + bias), left


def causal_convolution(x: mx.array, weight: mx.array, inputs: mx.array, steps: Steps) -> tuple[mx.array, mx.array]:
    """Depthwise convolution of packed x [N, C] with `weight` [C, K], whose last tap is a token's own input.

    `inputs` [P, C] are what the last rounds left: for each row the K - 1 inputs that were certain, then its tape's.
    A row that accepted n of those looks back from n further on. Returns the outputs [N, C] and the inputs that this
    round leaves, by seat.

    This is the plain-MLX reference; it adds in float32.
    """
    past = mx.zeros((*steps.past.shape, x.shape[1]), x.dtype)
    if inputs.shape[0]:
        fresh = mx.array([place.seat < 0 for place in steps.origins])
        past = mx.where(fresh[:, None, None], past, inputs[steps.past])
    everything = mx.concatenate([past.reshape(-1, x.shape[1]), x])
    looks = everything[steps.looks].astype(mx.float32)  # [N, K, C]
    y = (looks * weight.T.astype(mx.float32)).sum(axis=1)
    return y.astype(x.dtype), everything[steps.kept]
