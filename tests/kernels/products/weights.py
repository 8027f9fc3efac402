"""Weights quantised in every way that the kernels know, each with what MLX says it stands for."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import mlx.core as mx

from draftmill.kernels.products.quantisation import KNOWN, Quantisation, Weight

QUANTISATIONS = [Quantisation(group, bits, mode) for mode, bits, group in sorted(KNOWN)]


class Given(NamedTuple):
    """A weight, and the numbers [..., O, K] float32 that it stands for."""

    weight: Weight
    numbers: mx.array


def given(shape: tuple[int, ...], quantisation: Quantisation, dtype: mx.Dtype) -> Given:
    """A random weight [..., O, K], whose scales have this type in the affine mode."""
    with mx.stream(mx.cpu):
        drawn = mx.random.normal((prod(shape[:-1]), shape[-1])).astype(dtype)
        packed, scales, *biases = mx.quantize(drawn, **quantisation._asdict())
        exact = [part.astype(mx.float32) if biases else part for part in (scales, *biases)]
        bias = exact[1] if biases else None
        numbers = mx.dequantize(packed, exact[0], bias, **quantisation._asdict()).astype(mx.float32)
        parts = [part.reshape(*shape[:-1], -1) for part in (packed, scales, *biases)]
    return Given(Weight(parts[0], parts[1], parts[2] if biases else None, quantisation), numbers.reshape(shape))


def error(found: mx.array, expected: mx.array) -> float:
    """The largest error, relative to the largest number that is expected."""
    assert found.shape == expected.shape
    return float(mx.abs(found.astype(mx.float32) - expected).max() / mx.abs(expected).max())
