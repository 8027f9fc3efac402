"""Gumbel noise of a random stream for each seed and position: with it, the likeliest token is a draw."""

from __future__ import annotations

import mlx.core as mx

LEAST = 2.0**-33
"""Random numbers are at least this: the logarithm of 0, which comes once in 2**32, is infinite."""


def gumbel(seeds: mx.array, positions: mx.array, vocabulary: int) -> mx.array:
    """Noise [M, vocabulary] float32 of seeds [M] uint32 and positions [M].

    Threefry is keyed by (seed, position), so the streams of neighbours and of positions are independent.
    """
    keys = mx.stack([seeds, positions.astype(mx.uint32)], axis=-1)  # [M, 2]
    random = mx.vmap(lambda key: mx.random.uniform(shape=(vocabulary,), key=key))(keys)
    return -mx.log(-mx.log(mx.maximum(random, LEAST)))
