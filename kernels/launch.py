"""Kernels on the GPU: one Metal source, run by MLX as it is on Metal, and behind a prelude of its words on CUDA."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx

from .source import Kernel

CONSTANT_SIZE = 8
"""MLX hands Metal inputs with fewer elements in the constant address space, so these make another kernel."""

_HERE = Path(__file__).parent


def on_gpu(
    kernel: Kernel,
    inputs: Sequence[mx.array],
    constants: Mapping[str, int | bool | mx.Dtype],
    groups: tuple[int, int, int],
    threads: int,
    outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
) -> list[mx.array]:
    """`source.Launch` on this machine's GPU.

    Raises:
        RuntimeError: the kernel does not compile (when the outputs are evaluated), or MLX has no GPU here.
    """
    kinds = [f"{array.dtype} {array.size < CONSTANT_SIZE}" for array in inputs] + [str(dtype) for _, dtype in outputs]
    return _compiled(kernel, tuple(kinds))(
        inputs=list(inputs),
        template=list(constants.items()),
        grid=(groups[0] * threads, groups[1], groups[2]),
        threadgroup=(threads, 1, 1),
        output_shapes=[tuple(shape) for shape, _ in outputs],
        output_dtypes=[dtype for _, dtype in outputs],
    )


@cache
def _compiled(kernel: Kernel, kinds: tuple[str, ...]) -> Callable[..., list[mx.array]]:
    """MLX's kernel for inputs and outputs of these kinds.

    MLX compiles by name, the values of constants, and nothing else: on CUDA even between processes, from a cache on
    disk. So the name carries whatever else the compiled code depends on.
    """
    prelude = (_HERE / ("metal_prelude.h" if mx.metal.is_available() else "cuda_prelude.h")).read_text()
    header = prelude + kernel.header
    digest = hashlib.sha256("\0".join((header, kernel.body, *kinds)).encode()).hexdigest()[:16]
    make: Any = mx.fast.metal_kernel if mx.metal.is_available() else mx.fast.cuda_kernel
    return make(
        name=f"draftmill_{kernel.name}_{digest}",
        input_names=list(kernel.inputs),
        output_names=list(kernel.outputs),
        header=header,
        source=kernel.body,
    )
