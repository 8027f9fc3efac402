"""A residual sum and its root mean square norm, which follow each other in every block."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from ..gpu.launch import TYPES, on_gpu, real
from ..gpu.source import Launch, read_kernels

SOURCE = Path(__file__).with_suffix(".metal")
KERNEL = read_kernels(SOURCE)["add_norm"]
THREADS = 256


def fits(x: mx.array) -> bool:
    """Whether the kernel is made for tokens [N, size] like these."""
    return x.shape[1] % 4 == 0 and x.dtype in TYPES


def add_norm(x: mx.array, y: mx.array, weight: mx.array, epsilon: float) -> tuple[mx.array, mx.array]:
    """x + y [N, size], and its norm with `weight` [size]. The plain-MLX reference."""
    total = x + y
    return total, mx.fast.rms_norm(total, weight, epsilon)


def add_norm_by_kernel(
    x: mx.array, y: mx.array, weight: mx.array, epsilon: float, launch: Launch = on_gpu
) -> tuple[mx.array, mx.array]:
    """As `add_norm`, of tokens that `fits`."""
    total, normed = launch(
        KERNEL,
        [x, y, weight, real(epsilon)],
        {"T": x.dtype, "SIZE": x.shape[1], "THREADS": THREADS},
        (x.shape[0], 1, 1),
        THREADS,
        [(x.shape, x.dtype)] * 2,
    )
    return total, normed
