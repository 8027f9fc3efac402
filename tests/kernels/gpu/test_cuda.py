"""The kernels, behind the prelude, are CUDA, but for those of Metal only: its compiler takes them where there is one.

It needs no GPU.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from draftmill.kernels.attention import ragged_attention
from draftmill.kernels.choose import choose
from draftmill.kernels.fused import add_norm, rotary
from draftmill.kernels.gpu.launch import CUDA_TYPES, for_cuda
from draftmill.kernels.gpu.source import Kernel, read_kernels
from draftmill.kernels.pages import pool
from draftmill.kernels.pages.sizes import PAGE
from draftmill.kernels.products import experts, low_rank, quantized_matmul
from draftmill.kernels.recurrent import recurrence
from tests.kernels.lint import METAL_ONLY

NVCC = shutil.which("nvcc")
INCLUDES = """#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
"""
FOLDER = Path(recurrence.__file__).parent
ALIKE = {
    "THREADS": "128",
    "LANES": "8",
    "SPLIT": "1",
    "SINKS": "1",
    "CAPPED": "1",
    "NORMED": "1",
    "BITS": "4",
    "GROUP": "64",
    "ROWS": "16",
    "ROOM": "1024",
    "SPLITS": "2",
    "PAGE": str(PAGE),
    "STEP": str(ragged_attention.STEP),
}
GATED = {
    "HEADS": "16",
    "KV_HEADS": "4",
    "DIM": "256",
    "STRIDE": "512",
    "WIDTH": "10240",
    "KEYS": "8192",
    "VALUES": "9216",
    "ROTATED": "64",
}
"""Heads of queries with a gate behind each."""
LANES = {"LINES": "4", "WORDS": "2"}
VARIANTS: list[tuple[Path, str, str, dict[str, str]]] = [
    (ragged_attention.SOURCE, "attend", "__nv_bfloat16", {"D": "128", "HEADS": "32", "KV_HEADS": "8", "PAIRS": "32"}),
    (ragged_attention.SOURCE, "attend", "float", {"D": "256", "HEADS": "16", "KV_HEADS": "4", "PAIRS": "16"}),
    (ragged_attention.SOURCE, "attend", "__half", {"D": "512", "HEADS": "16", "KV_HEADS": "2", "PAIRS": "16"}),
    (ragged_attention.SOURCE, "combine", "__half", {"D": "64"}),
    (quantized_matmul.SOURCE, "quantized_matmul", "__nv_bfloat16", LANES | {"MODE": "0", "GROUPED": "0"}),
    (quantized_matmul.SOURCE, "quantized_matmul", "__half", LANES | {"MODE": "2", "GROUPED": "1"}),
    (experts.SOURCE, "route", "float", {}),
    (FOLDER / "gated_delta.metal", "gated_delta", "__nv_bfloat16", {"HK": "16", "HV": "32", "DK": "128", "DV": "128"}),
    (rotary.SOURCE, "rotate", "__nv_bfloat16", GATED | {"VALUES_NORMED": "0"}),
    (rotary.SOURCE, "rotate", "float", GATED | {"VALUES": GATED["KEYS"], "VALUES_NORMED": "1"}),
    (add_norm.SOURCE, "add_norm", "__half", {"SIZE": "2560"}),
    (low_rank.SOURCE, "add_low_rank", "__nv_bfloat16", {"ROOM": "256", "SPAN": "1024"}),
    (pool.SOURCE, "store", "float", {"HEADS": "8", "WORDS": "32"}),
    (pool.SOURCE, "gather", "float", {"HEADS": "8", "WORDS": "32"}),
    (choose.SOURCE, "choose", "__nv_bfloat16", {"VOCABULARY": "151936"}),
    (
        FOLDER / "convolution.metal",
        "convolve",
        "__half",
        {"KEYS": "2048", "VALUES": "4096", "WIDTH": "12352", "DK": "128", "LOOKS": "4", "GATED": "0"},
    ),
    (
        FOLDER / "convolution.metal",
        "convolve",
        "__nv_bfloat16",
        {"KEYS": "0", "VALUES": "2048", "WIDTH": "6144", "DK": "16", "LOOKS": "3", "GATED": "1"},
    ),
]


@pytest.mark.skipif(NVCC is None, reason="there is no CUDA compiler")
@pytest.mark.parametrize(("path", "name", "dtype", "constants"), VARIANTS, ids=[name for _, name, _, _ in VARIANTS])
def test_kernels_compile(path: Path, name: str, dtype: str, constants: dict[str, str], tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text(as_cuda(path, read_kernels(path)[name], dtype, constants | ALIKE))
    command = [
        str(NVCC),
        "-std=c++17",
        "-arch=sm_90",
        "-Werror=all-warnings",
        "-diag-suppress=177",
        "-ptx",
        str(source),
        "-o",
        "/dev/null",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_kernel_is_compiled_or_for_metal_only() -> None:
    compiled = {(path.name, name) for path, name, _, _ in VARIANTS}
    every = {(path.name, name) for path in FOLDER.parent.rglob("*.metal") for name in read_kernels(path)}
    assert compiled == {(file, name) for file, name in every if name not in METAL_ONLY}


def as_cuda(path: Path, kernel: Kernel, dtype: str, constants: dict[str, str]) -> str:
    """The kernel as MLX would write it, of the types that its file names."""
    header, body = for_cuda(kernel)
    declared = path.read_text().partition(f"kernel void {kernel.name}(")[2]
    parameters: list[str] = []
    for name in kernel.inputs + kernel.outputs:
        kind = next(line.split("*")[0].split()[-1] for line in declared.splitlines() if f"* {name}" in line)
        read_only = "const " if name in kernel.inputs else ""
        parameters.append(f"{read_only}{dtype if kind == 'T' else 'float' if kind == 'OUT' else kind}* {name}")
    fixed = "".join(f"constexpr int {name} = {value};\n" for name, value in constants.items() if name in body)
    named = {"T": dtype, "OUT": "float", "W": CUDA_TYPES[pool.WORD]}
    types = "".join(f"using {name} = {what};\n" for name, what in named.items())
    return f"{INCLUDES}{header}{types}{fixed}__global__ void kernel({', '.join(parameters)}) {{{body}}}"
