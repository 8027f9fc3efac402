"""The causal convolution before a recurrent layer, over packed rows, each with its own window of past inputs."""

from __future__ import annotations

import mlx.core as mx

from .steps import Steps


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
