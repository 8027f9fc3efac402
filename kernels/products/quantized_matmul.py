"""Quantised matrix products of 2 to 64 rows, the regime between stock's matrix-vector and matrix-matrix kernels."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from ..gpu.launch import numbers, on_gpu
from ..gpu.source import Launch, read_kernels
from .quantisation import NUMBERS, Weight
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
    length = x.shape[1]
    if routed is None:
        count = x.shape[0]
        rows = tiling.rows(count)
        tiles = -(-count // rows)
    else:
        count, tiles, rows = x.shape[0] * routed.share, routed.tiles, routed.rows
    splits = tiling.splits(weight.lines, tiles, x.dtype)
    sizes = numbers(count, length, weight.lines, routed.share if routed else 1)
    format = {"MODE": NUMBERS[quantisation.mode], "BITS": quantisation.bits, "GROUP": quantisation.group_size}
    (outputs,) = launch(
        KERNELS[tiling.kernel],
        [x, packed, scales, scales if biases is None else biases, sizes, routed.table if routed else sizes],
        {"T": x.dtype, **format, "GROUPED": routed is not None, "SPLITS": splits, **tiling.constants(rows, x.dtype)},
        (-(-weight.lines // tiling.across(splits)), tiles, 1),
        tiling.threads(splits),
        [((count, weight.lines), x.dtype)],
    )
    return outputs
