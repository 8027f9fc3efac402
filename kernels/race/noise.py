"""Random inputs of any size for little more memory than they take themselves."""

from __future__ import annotations

from math import prod

import mlx.core as mx

from ..products.quantisation import AFFINE, Quantisation, Weight

DRAWN = 1 << 20
"""Numbers that are drawn at most; a larger array repeats them."""


def noise(*shape: int, dtype: mx.Dtype) -> mx.array:
    """Normal numbers [shape] of a type. Drawn whole, in float32, they would take many times their own memory."""
    lines = min(shape[0], max(1, DRAWN // prod(shape[1:])))
    drawn = mx.random.normal((lines, *shape[1:])).astype(dtype)
    return drawn if lines == shape[0] else drawn[mx.arange(shape[0]) % lines]


SCALES = {"mxfp4": 124, "mxfp8": 126, "nvfp4": 40}
"""Of modes without biases, the byte of a scale with which numbers are about 1."""

NUMBERS = 0xBFBFBFBF
"""With no bits but these, bytes of FP8 are numbers."""


def quantised_noise(lines: int, length: int, quantisation: Quantisation, dtype: mx.Dtype) -> Weight:
    """A quantised weight of numbers from -1 to 1 or so, drawn as it is packed."""
    group_size, bits, mode = quantisation
    words = length * bits // 32
    # Keys of random streams are random words, and drawing them takes no memory beside theirs.
    packed = mx.random.split(mx.random.key(lines), -(-lines * words // 2)).reshape(-1)[: lines * words]
    packed = packed.reshape(lines, words)
    if mode != AFFINE:
        scale = SCALES[mode]
        scales = mx.random.randint(scale, scale + 3, (lines, length // group_size)).astype(mx.uint8)
        return Weight(packed & NUMBERS if bits == 8 else packed, scales, None, quantisation)
    scales = (noise(lines, length // group_size, dtype=mx.float32) * 0.1 + 1) / 2 ** (bits - 1)
    return Weight(packed, scales.astype(dtype), (-scales * 2 ** (bits - 1)).astype(dtype), quantisation)
