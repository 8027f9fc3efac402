"""Gumbel noise of a random stream for each seed and position: with it, the likeliest token is a draw."""

from __future__ import annotations

from functools import partial

import mlx.core as mx

LEAST = 2.0**-33
"""Random numbers are at least this: the logarithm of 0, which comes once in 2**32, is infinite."""

BELOW_1 = 1 - 2.0**-24
"""The largest float32 below 1, whose logarithm would be infinite, too."""

TURNS, PARITY = ((13, 15, 26, 6), (17, 29, 16, 24)), 0x1BD11BDA
"""Threefry's rotations, four rounds and the next four, and the constant in its key."""


def gumbel(seeds: mx.array, positions: mx.array, vocabulary: int) -> mx.array:
    """Noise [M, vocabulary] float32 of seeds [M] uint32 and positions [M].

    Threefry is keyed by (seed, position), so the streams of neighbours and of positions are independent.
    """
    keys = mx.stack([seeds, positions.astype(mx.uint32)], axis=-1)  # [M, 2]
    random = mx.vmap(lambda key: mx.random.uniform(shape=(vocabulary,), key=key))(keys)
    return -mx.log(-mx.log(mx.maximum(random, LEAST)))


def gumbel_of(tokens: mx.array, seeds: mx.array, positions: mx.array, vocabulary: int) -> mx.array:
    """What `gumbel` has for a few tokens [M, K] of each seed [M] and position [M], without the rest: [M, K] float32.

    MLX draws two numbers with one counter: that of a place in the first half, and that as far on in the second half.
    """
    half = vocabulary // 2
    behind = half + vocabulary % 2  # where the second half begins; the odd one between has a counter alone
    tokens = tokens.astype(mx.uint32)
    second = tokens >= behind
    x = mx.where(second, tokens - behind, tokens)
    y = mx.where(second, tokens, mx.where(tokens < half, tokens + behind, 0))
    words = _threefry(seeds[:, None], positions[:, None].astype(mx.uint32), x, y)
    word = mx.where(second, words[1], words[0])
    random = mx.minimum(word.astype(mx.float32) / 0xFFFFFFFF, BELOW_1)
    return -mx.log(-mx.log(mx.maximum(random, LEAST)))


@partial(mx.compile, shapeless=True)
def _threefry(seed: mx.array, position: mx.array, x: mx.array, y: mx.array) -> list[mx.array]:
    """Threefry 2x32 (Salmon et al. 2011) of a key and a counter, two words each, all uint32."""
    keys = seed, position, seed ^ position ^ PARITY
    x, y = x + keys[0], y + keys[1]
    for i in range(5):
        for turn in TURNS[i % 2]:
            x = x + y
            y = (y << turn | y >> (32 - turn)) ^ x
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + (i + 1)
    return [x, y]
