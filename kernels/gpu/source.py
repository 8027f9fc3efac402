"""Kernels as they are written: `.metal` files of helpers and `kernel void` functions, read for their launchers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Protocol

import mlx.core as mx

_KERNEL = re.compile(r"^kernel void (\w+)\(([^)]*)\) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"[ \t]*//[^\n]*")


@dataclass(frozen=True, eq=False)
class Kernel:
    """One kernel: the buffers that it reads and writes, by name, the helpers above it, and its body.

    The signature itself is left to MLX, which writes it from the arrays of a call.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    header: str
    body: str


@dataclass(frozen=True, eq=False)
class Memory:
    """An evaluated array `whole` of which a kernel reads, and may write, any part.

    MLX is handed its `head`: it ends a command buffer when the inputs of its operations have too many elements, on CUDA
    with those of each operation counted anew, and a large array would end one at each touch.
    """

    whole: mx.array
    head: mx.array

    @staticmethod
    def of(whole: mx.array, lines: int) -> Memory:
        """The memory of an array, of which the first lines are its head."""
        head = whole[:lines]
        mx.eval(head)
        return Memory(whole, head)

    @property
    def dtype(self) -> mx.Dtype:
        return self.whole.dtype

    @property
    def size(self) -> int:
        return self.whole.size


Input = mx.array | Memory


class Launch(Protocol):
    """Runs a kernel: on the GPU (`launch.on_gpu`), or on a CPU, checked, in the tests."""

    def __call__(
        self,
        kernel: Kernel,
        inputs: Sequence[Input],
        constants: Mapping[str, int | bool | mx.Dtype],
        groups: tuple[int, int, int],
        threads: int,
        outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
        /,
    ) -> list[mx.array]:
        """Run `groups` threadgroups of `threads` threads; `constants` are compiled in, `outputs` are shape and type."""
        ...


@lru_cache
def read_kernels(path: Path) -> dict[str, Kernel]:
    """The kernels of a `.metal` file by name; each gets all the text above the first one as its header."""
    return parse(path.read_text())


def parse(text: str) -> dict[str, Kernel]:
    """As `read_kernels`, of a file's text."""
    text = _COMMENT.sub("", text)
    found = list(_KERNEL.finditer(text))
    header = text[: found[0].start()] if found else text
    return {match[1]: _kernel(match, header) for match in found}


def _kernel(match: re.Match[str], header: str) -> Kernel:
    parameters = [parameter.strip() for parameter in match[2].split(",")]
    names = {reads: [p.split()[-1] for p in parameters if p.startswith("const ") is reads] for reads in (True, False)}
    return Kernel(match[1], tuple(names[True]), tuple(names[False]), header, match[3])


@cache
def digest(folder: Path = Path(__file__).parents[1]) -> str:
    """Stands for everything that the code in a folder is made of: by default, what the kernels of this version are."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".metal", ".h", ".py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:12]
