"""Random inputs of any size for little more memory than they take themselves."""

from __future__ import annotations

from math import prod

import mlx.core as mx

DRAWN = 1 << 20
"""Numbers that are drawn at most; a larger array repeats them."""


def noise(*shape: int, dtype: mx.Dtype) -> mx.array:
    """Normal numbers [shape] of a type. Drawn whole, in float32, they would take many times their own memory."""
    lines = min(shape[0], max(1, DRAWN // prod(shape[1:])))
    drawn = mx.random.normal((lines, *shape[1:])).astype(dtype)
    return drawn if lines == shape[0] else drawn[mx.arange(shape[0]) % lines]


Weight = tuple[mx.array, mx.array, mx.array]
"""A quantised weight: packed words [lines, length * bits / 32], and scales and biases [lines, length / group]."""


def quantised_noise(lines: int, length: int, group_size: int, bits: int, dtype: mx.Dtype) -> Weight:
    """A quantised weight of numbers from -1 to 1, drawn as it is packed."""
    words = length * bits // 32
    # Keys of random streams are random words, and drawing them takes no memory beside theirs.
    packed = mx.random.split(mx.random.key(lines), -(-lines * words // 2)).reshape(-1)[: lines * words]
    scales = (noise(lines, length // group_size, dtype=mx.float32) * 0.1 + 1) / 2 ** (bits - 1)
    return packed.reshape(lines, words), scales.astype(dtype), (-scales * 2 ** (bits - 1)).astype(dtype)
