"""Compiles a kernel with the system's C++ compiler and runs it over MLX arrays, as `gpu.launch.on_gpu` would."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from draftmill.kernels.gpu.launch import CONSTANT_SIZE
from draftmill.kernels.gpu.source import Input, Kernel, Memory

_HERE = Path(__file__).parent
_CPP = {
    mx.float32: "float",
    mx.float16: "half",
    mx.bfloat16: "bfloat",
    mx.int32: "int",
    mx.uint8: "uchar",
    mx.uint32: "uint",
    mx.uint64: "ulong",
}
_HEADERS = ["machine.h", "prelude.h", "simdgroup_matrix.h"]
_FLAGS = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-U_FORTIFY_SOURCE",
    "-D_XOPEN_SOURCE=700",
    "-D_DARWIN_C_SOURCE",
]
_SHARED = re.compile(r"\bthreadgroup\s+(\w+)\s+(\w+)\[([^;]+)\];")
_POINTER = re.compile(r"\b(const\s+)?(device|constant)\s+(\w+)\s*\*\s*")


class Fault(AssertionError):
    """What a kernel did that it must not do."""


def compiler() -> str | None:
    """The system's C++ compiler."""
    named = os.environ.get("CXX")
    return named or next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)


def on_cpu(
    kernel: Kernel,
    inputs: Sequence[Input],
    constants: Mapping[str, int | bool | mx.Dtype],
    groups: tuple[int, int, int],
    threads: int,
    outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
) -> list[mx.array]:
    """`source.Launch` on this machine's CPU.

    Raises:
        Fault: an access out of bounds, a race, a divergent barrier, a read of what nothing wrote, too much memory.
    """
    spaces = ["constant" if array.size < CONSTANT_SIZE else "device" for array in inputs]
    kinds = [f"const {_CPP[a.dtype]}, machine::in_{space}" for a, space in zip(inputs, spaces, strict=True)]
    kinds += [f"{_CPP[dtype]}, machine::in_device" for _, dtype in outputs]
    run = _compiled(translate(kernel, tuple(kinds), constants))
    given = [_to_numpy(each.whole if isinstance(each, Memory) else each) for each in inputs]
    # All bits set: not a number in any of the types, so what nothing writes shows.
    made = [np.full(shape, -1, np.dtype(f"i{dtype.size}")) for shape, dtype in outputs]
    arrays = [*given, *made]
    none = np.empty(0, np.int64)  # of inputs, which may be pools of many megabytes
    owners = [none] * len(given) + [np.full(array.size, -1, np.int64) for array in made]
    sizes = (ctypes.c_long * len(arrays))(*(array.size for array in arrays))
    message = ctypes.create_string_buffer(512)
    if not run(_pointers(arrays), sizes, _pointers(owners), (ctypes.c_uint * 3)(*groups), threads, message):
        raise Fault(f"{kernel.name}: {message.value.decode()}")
    return [mx.array(array).view(dtype) for array, (_, dtype) in zip(made, outputs, strict=True)]


def translate(kernel: Kernel, kinds: tuple[str, ...], constants: Mapping[str, int | bool | mx.Dtype]) -> str:
    """The kernel as C++: buffers and threadgroup arrays become checked ones, all else stays as it is written."""
    names = kernel.inputs + kernel.outputs
    fixed = [
        f"using {name} = {_CPP[value]};" if isinstance(value, mx.Dtype) else f"constexpr int {name} = {int(value)};"
        for name, value in constants.items()
    ]
    parameters = [f"machine::Buffer<{kind}> {name}" for kind, name in zip(kinds, names, strict=True)]
    makes: list[str] = []
    for i, (kind, name) in enumerate(zip(kinds, names, strict=True)):
        pointer = f"static_cast<{kind.split(',')[0]}*>(pointers[{i}])"
        owners = "nullptr" if name in kernel.inputs else f"owners[{i}]"
        makes.append(f'machine::Buffer<{kind}>{{{{{pointer}, sizes[{i}], 0, "{name}", {owners}}}}}')
    return f"""#include "prelude.h"
#include "simdgroup_matrix.h"

{_POINTER.sub(_pointer, kernel.header)}
static void kernel({", ".join(parameters)}) {{
  {" ".join(fixed)}
#line 1 "{kernel.name}.metal"
{_SHARED.sub(_shared, _POINTER.sub(_pointer, kernel.body))}
}}

struct Arguments {{
  void** pointers;
  long* sizes;
  int64_t** owners;
}};

static void enter(void* given) {{
  auto [pointers, sizes, owners] = *static_cast<Arguments*>(given);
  kernel({", ".join(makes)});
}}

extern "C" __attribute__((visibility("default"))) bool run(
    void** pointers, long* sizes, int64_t** owners, unsigned* groups, int threads, char* message) {{
  Arguments arguments{{pointers, sizes, owners}};
  return machine::launch(enter, &arguments, groups, threads, message);
}}
"""


def _shared(match: re.Match[str]) -> str:
    kind, name, count = match.groups()
    return f'auto {name} = machine::shared<{kind}>("{name}", __LINE__, {count});'


def _pointer(match: re.Match[str]) -> str:
    return f"machine::Buffer<{match[1] or ''}{match[3]}, machine::in_{match[2]}> "


def _to_numpy(array: mx.array) -> np.ndarray:
    bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    # Not copied: a pool is an input, and yet written.
    return np.ascontiguousarray(np.array(bits, copy=False))


def _pointers(arrays: Sequence[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


@cache
def _compiled(code: str) -> Callable[..., bool]:
    """The compiled kernel, kept for later runs of the tests by what it was compiled from."""
    machine = _made((_HERE / "machine.cpp").read_text(), ".o", ["-c"])
    library = ctypes.CDLL(str(_made(code, ".so", ["-shared", str(machine)])))
    library.run.restype = ctypes.c_bool
    return library.run


def _made(code: str, suffix: str, options: list[str]) -> Path:
    """What the compiler makes of `code`, anew or from an earlier run."""
    cpp = compiler()
    assert cpp is not None
    parts = [code, cpp, *options, *((_HERE / name).read_text() for name in _HEADERS)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"draftmill-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    made = folder / f"{digest}{suffix}"
    if made.exists():
        return made
    with tempfile.TemporaryDirectory(dir=folder) as own:
        source, result = Path(own) / "kernel.cpp", Path(own) / made.name
        source.write_text(code)
        done = subprocess.run(
            [cpp, *_FLAGS, f"-I{_HERE}", str(source), "-o", str(result), *options], capture_output=True, text=True
        )
        if done.returncode:
            raise Fault(f"does not compile: {done.stderr[:2000]}")
        result.replace(made)
    return made
