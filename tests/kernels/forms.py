"""In which forms kernels are tested: emulated everywhere, and on the GPU where there is one."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import pytest

from draftmill.kernels.gpu.launch import on_gpu
from draftmill.kernels.gpu.source import Launch

from .emulator import compiler, on_cpu


class Form(NamedTuple):
    """How to run a kernel, in which type, and the relative error that is allowed then."""

    launch: Launch
    dtype: mx.Dtype
    bound: float


EMULATED = pytest.mark.skipif(compiler() is None, reason="kernels are emulated by a C++ compiler: there is none")


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]


_BOUNDS = {mx.float32: 1e-5, mx.float16: 1e-3, mx.bfloat16: 5e-3}

_EMULATED, *_EMULATED_HALF = (
    pytest.param(Form(on_cpu, dtype, bound), id=f"emulated-{_name(dtype)}", marks=EMULATED)
    for dtype, bound in _BOUNDS.items()
)
_GPU = [
    pytest.param(Form(on_gpu, dtype, bound), id=f"gpu-{_name(dtype)}")
    for dtype, bound in _BOUNDS.items()
    if mx.metal.is_available() or mx.cuda.is_available()
]

EXACTLY = pytest.mark.parametrize("form", [_EMULATED, *_GPU])
"""In float32 where emulated, in every type on a GPU."""


def need_metal(form: Form) -> None:
    """Skip a form on another GPU than Metal's, for kernels that are written for Metal only."""
    if form.launch is on_gpu and not mx.metal.is_available():
        pytest.skip("simdgroup matrices are Metal's: this kernel does not run on CUDA")


IN_HALF_PRECISION = pytest.mark.parametrize("form", _EMULATED_HALF)
