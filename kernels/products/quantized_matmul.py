"""Quantised matrix products of 2 to 64 rows, the regime between stock's matrix-vector and matrix-matrix kernels."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from ..gpu.launch import numbers, on_gpu
from ..gpu.source import Launch, read_kernels

SOURCE = Path(__file__).with_suffix(".metal")
KERNEL = read_kernels(SOURCE)["quantized_matmul"]

OUTPUTS = 4
"""Lines of the weight that a simdgroup takes."""

SIMDGROUPS = 4


def quantized_matmul(
    x: mx.array, w: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int
) -> mx.array:
    """x [N, K] times the transpose of an affinely quantised weight [O, K]; returns [N, O]. The plain-MLX reference."""
    return mx.quantized_matmul(x, w, scales, biases, transpose=True, group_size=group_size, bits=bits)


def quantized_matmul_by_kernel(
    x: mx.array,
    w: mx.array,
    scales: mx.array,
    biases: mx.array,
    group_size: int,
    bits: int,
    launch: Launch = on_gpu,
) -> mx.array:
    """As `quantized_matmul`, of 4 or 8 bits, for any number of rows; made for 2 to 64."""
    (count, length), lines = x.shape, w.shape[0]
    rows = next((rows for rows in (2, 4, 8) if count <= rows), 16)
    sizes = {"K": length, "LINES": lines, "BITS": bits, "GROUP": group_size, "OUTPUTS": OUTPUTS, "ROWS": rows}
    (outputs,) = launch(
        KERNEL,
        [x, w, scales, biases, numbers(count)],
        {"T": x.dtype, **sizes},
        (-(-lines // (OUTPUTS * SIMDGROUPS)), -(-count // rows), 1),
        32 * SIMDGROUPS,
        [((count, lines), x.dtype)],
    )
    return outputs
