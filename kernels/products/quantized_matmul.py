"""Quantised matrix products of 2 to 64 rows, the regime between stock's matrix-vector and matrix-matrix kernels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from ..gpu.launch import numbers, on_gpu
from ..gpu.source import Launch, read_kernels
from .quantisation import NUMBERS, Quantisation, Weight
from .tiling import Tiling

SOURCE = Path(__file__).with_suffix(".metal")
KERNELS = read_kernels(SOURCE)


class Routed(NamedTuple):
    """Choices of experts, which products take expert by expert (`experts.route`).

    `tiles` of at most so many `rows` are what a threadgroup takes; so many choices `share` a row of x.
    """

    table: mx.array
    tiles: int
    rows: int
    share: int


def quantized_matmul(x: mx.array, weight: Weight) -> mx.array:
    """x [N, K] times the transpose of a quantised weight [O, K]; returns [N, O]. The plain-MLX reference."""
    packed, scales, biases, quantisation = weight
    return mx.quantized_matmul(x, packed, scales, biases, True, *quantisation)


def quantized_matmul_by_kernel(
    x: mx.array, weight: Weight, tiling: Tiling, launch: Launch = on_gpu, routed: Routed | None = None
) -> mx.array:
    """As `quantized_matmul`, for any number of rows, of a quantisation that is known; made for 2 to 64.

    With `routed` choices, the weight is that of all experts [experts, O, K], and x [choices / share, K] has the row of
    each choice; returns [choices, O].
    """
    packed, scales, biases, quantisation = weight
    count, sizes, constants, groups, threads = _shared(
        tiling, quantisation, x.dtype, x.shape, weight.lines, routed[1:] if routed else None
    )
    (outputs,) = launch(
        KERNELS[tiling.kernel],
        [x, packed, scales, scales if biases is None else biases, sizes, routed.table if routed else sizes],
        constants,
        groups,
        threads,
        [((count, weight.lines), x.dtype)],
    )
    return outputs


class Shared(NamedTuple):
    """How a product with so many `rows` of outputs is shared out: alike for all layers of one shape, in every round."""

    rows: int
    sizes: mx.array
    constants: Mapping[str, int | bool | mx.Dtype]
    groups: tuple[int, int, int]
    threads: int


@lru_cache(4096)
def _shared(
    tiling: Tiling,
    quantisation: Quantisation,
    dtype: mx.Dtype,
    shape: tuple[int, int],
    lines: int,
    routed: tuple[int, int, int] | None,
) -> Shared:
    """Of x with this shape [N, K] and a weight of so many lines; choices are `routed` in tiles, of rows, of which some
    share a row of x.
    """
    tokens, length = shape
    if routed:
        tiles, rows, share = routed
    else:
        rows, share = tiling.rows(tokens), 1
        tiles = -(-tokens // rows)
    count, splits = tokens * share, tiling.splits(lines, tiles, dtype)
    format = {"MODE": NUMBERS[quantisation.mode], "BITS": quantisation.bits, "GROUP": quantisation.group_size}
    constants = {"T": dtype, **format, "GROUPED": routed is not None, "SPLITS": splits, **tiling.constants(rows, dtype)}
    groups = (-(-lines // tiling.across(splits)), tiles, 1)
    return Shared(count, numbers(count, length, lines, share), constants, groups, tiling.threads(splits))
