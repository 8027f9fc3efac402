"""Quantised matrix products of 2 to 64 rows by simdgroup matrices: Metal only."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from ..gpu.launch import numbers, on_gpu
from ..gpu.source import Launch, read_kernels

SOURCE = Path(__file__).with_suffix(".metal")
KERNEL = read_kernels(SOURCE)["quantized_matmul_simdgroup"]

FEW_LINES = 4096
"""Below so many lines, threadgroups take half as many and share each out among twice as many simdgroups: more of the
GPU's cores have work then."""


def quantized_matmul_by_simdgroups(
    x: mx.array,
    w: mx.array,
    scales: mx.array,
    biases: mx.array,
    group_size: int,
    bits: int,
    launch: Launch = on_gpu,
) -> mx.array:
    """As `quantized_matmul.quantized_matmul`, of 4 or 8 bits, for any number of rows; made for 8 to 64, on Metal.

    Weights are unpacked to the type of x, as in stock MLX, and products are added up in float32.
    """
    (count, length), lines = x.shape, w.shape[0]
    tiles = next((tiles for tiles in (1, 2, 4) if count <= 8 * tiles), 8)
    columns, splits = (16, 16) if lines < FEW_LINES else (32, 8)
    splits //= x.dtype.size  # so that threadgroup memory stays below 24 KB
    sizes = {"K": length, "LINES": lines, "BITS": bits, "GROUP": group_size}
    form = {"TILES": tiles, "COLUMNS": columns, "SPLITS": splits, "STAGED": count < 8}
    (outputs,) = launch(
        KERNEL,
        [x, w, scales, biases, numbers(count)],
        {"T": x.dtype, **sizes, **form},
        (-(-lines // columns), -(-count // (8 * tiles)), 1),
        32 * splits,
        [((count, lines), x.dtype)],
    )
    return outputs
