"""Kernels on the GPU: one Metal source, run by MLX as it is on Metal, and behind a prelude of its words on CUDA."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from .source import Input, Kernel, Memory

CONSTANT_SIZE = 8
"""MLX hands Metal inputs with fewer elements in the constant address space, so these make another kernel."""

TYPES = (mx.float32, mx.float16, mx.bfloat16)
"""The types of number that kernels are written for."""

EXACT = {"choose"}
"""Kernels for which Metal's fast mathematics is not good enough: the tail of a logarithm decides a draw."""

_HERE = Path(__file__).parent

METAL_PRELUDE = _HERE / "metal_prelude.h"
"""What stands before every kernel on Metal, behind what MLX itself puts there."""


def on_device(values: Any) -> mx.array:
    """Whole numbers [...] int32 for kernels, in memory that the device itself has written.

    On CUDA an attention call took 42 us with them and 58 with arrays as the host made them. A change of size copies.
    """
    return mx.array(values, mx.int64).astype(mx.int32)


@lru_cache(4096)
def numbers(*values: int) -> mx.array:
    """A few whole numbers for kernels [8 or more], likewise; MLX keeps smaller arrays in a memory of their own."""
    return on_device([*values, *[0] * (CONSTANT_SIZE - len(values))])


@lru_cache
def real(value: float) -> mx.array:
    """A real number for kernels, eight times [8] float32, likewise."""
    return mx.full((CONSTANT_SIZE,), value, mx.float32)


@lru_cache
def reals(first: float, second: float) -> mx.array:
    """Two real numbers for kernels, the second one seven times [8] float32, likewise."""
    return mx.where(mx.arange(CONSTANT_SIZE) == 0, mx.array(first), mx.array(second))


def on_gpu(
    kernel: Kernel,
    inputs: Sequence[Input],
    constants: Mapping[str, int | bool | mx.Dtype],
    groups: tuple[int, int, int],
    threads: int,
    outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
) -> list[mx.array]:
    """`source.Launch` on this machine's GPU.

    Raises:
        RuntimeError: the kernel does not compile (when the outputs are evaluated), or MLX has no GPU here.
    """
    return encode(kernel, inputs, constants, groups, threads, outputs, mx.metal.is_available())


def encode(
    kernel: Kernel,
    inputs: Sequence[Input],
    constants: Mapping[str, int | bool | mx.Dtype],
    groups: tuple[int, int, int],
    threads: int,
    outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
    metal: bool,
) -> list[mx.array]:
    """As `on_gpu`, for Metal or for CUDA. It can be exported on any machine, and evaluated only on such a GPU."""
    return _compiled(*variant(kernel, inputs, constants, outputs), metal)(
        inputs=[each.head if isinstance(each, Memory) else each for each in inputs],
        grid=(groups[0] * threads, groups[1], groups[2]),
        threadgroup=(threads, 1, 1),
        output_shapes=[shape for shape, _ in outputs],
        output_dtypes=[dtype for _, dtype in outputs],
    )


Variant = tuple[Kernel, tuple[Any, ...], tuple[tuple[str, int | bool | mx.Dtype], ...]]
"""Whatever the compiled code depends on: the kernel, the kinds of its inputs and outputs, and its constants."""


def variant(
    kernel: Kernel,
    inputs: Sequence[Input],
    constants: Mapping[str, int | bool | mx.Dtype],
    outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
) -> Variant:
    """Which variant of a kernel a launch runs. Each is compiled when it first runs, which takes up to seconds."""
    kinds = *[(array.dtype, array.size < CONSTANT_SIZE) for array in inputs], *[dtype for _, dtype in outputs]
    return kernel, kinds, tuple(constants.items())


@cache
def _compiled(
    kernel: Kernel, kinds: tuple[Any, ...], constants: tuple[tuple[str, int | bool | mx.Dtype], ...], metal: bool
) -> Callable[..., list[mx.array]]:
    """MLX's kernel for inputs and outputs of these kinds.

    MLX compiles by name and nothing else: on CUDA even between processes, from a cache on disk. So the name carries
    whatever the compiled code depends on. Constants are part of the source: MLX's own way to pass them costs the host
    more, at every call, than everything else in a launch.
    """
    if metal:
        mode = "safe" if kernel.name in EXACT else "fast"
        make: Any = partial(mx.fast.metal_kernel, compile_options={"math_mode": mode})
        header, body, types = METAL_PRELUDE.read_text() + kernel.header, kernel.body, METAL_TYPES
    else:
        make = mx.fast.cuda_kernel
        (header, body), types = for_cuda(kernel), CUDA_TYPES
    body = "".join(_defined(name, value, types) for name, value in constants) + body
    digest = hashlib.sha256("\0".join((header, body, *map(str, kinds))).encode()).hexdigest()[:16]
    return make(
        name=f"draftmill_{kernel.name}_{digest}",
        input_names=list(kernel.inputs),
        output_names=list(kernel.outputs),
        header=header,
        source=body,
    )


METAL_TYPES = {mx.float32: "float", mx.float16: "half", mx.bfloat16: "bfloat16_t", mx.uint64: "uint64_t"}
CUDA_TYPES = {mx.float32: "float", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16", mx.uint64: "uint64_t"}


def _defined(name: str, value: int | bool | mx.Dtype, types: Mapping[mx.Dtype, str]) -> str:
    if isinstance(value, mx.Dtype):
        return f"using {name} = {types[value]};\n"
    return f"constexpr int {name} = {int(value)};\n"


def for_cuda(kernel: Kernel) -> tuple[str, str]:
    """Header and body for CUDA: behind the prelude, without the address spaces that CUDA does not tell apart.

    `device` cannot be a macro of the prelude: CUDA's own `__device__` is made from that word.
    """
    header, body = (re.sub(r"\b(?:device|constant|thread)\s+", "", text) for text in (kernel.header, kernel.body))
    return (_HERE / "cuda_prelude.h").read_text() + header, body
