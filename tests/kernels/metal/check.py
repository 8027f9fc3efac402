"""Whether what MLX would hand to Metal is valid, by libclang, and within Metal's limits."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from clang.cindex import Cursor, Diagnostic, Index

from draftmill.kernels.gpu.launch import METAL_PRELUDE

from .launches import Launched
from .rules import broken

MOST_BUFFERS = 31
MOST_THREADS = 1024
MOST_BYTES = 32 * 1024
"""Of threadgroup memory."""

_HERE = Path(__file__).parent
_FLAGS = [
    "-xcl",
    "-cl-std=CLC++2021",
    "-cl-no-stdinc",
    "-nostdinc",
    "-target",
    "spir64",
    "-Xclang",
    "-cl-ext=-all,+cl_khr_fp16,+__opencl_c_generic_address_space",  # structs are copied by references without a space
    f"-isystem{_HERE}",
    f"-include{_HERE / 'words.h'}",
    "-Wno-unknown-attributes",  # Metal's, in the signature that MLX writes
    "-Wcast-qual",
    "-Wpre-c++17-compat",  # Metal before version 4 is C++14
]
_INDEX = Index.create()


def check(launched: Launched, rules: bool = True) -> list[str]:
    """What is wrong with a launch, a line each.

    Args:
        rules: whether to check those that take long, and depend neither on types nor on address spaces.
    """
    _, text, *sizes = launched.handed_over()
    refused, shared = compiled(text, rules)
    grid, threads = sizes[:3], sizes[3:6]
    buffers = len(re.findall(r"\[\[buffer\(\d+\)\]\]", text))
    wrong = list(refused)
    inside = threads[0] * threads[1] * threads[2]
    if inside % 32 or not 0 < inside <= MOST_THREADS:
        wrong.append(f"{inside} threads: Metal has whole simdgroups of 32, and at most {MOST_THREADS}")
    if any(size % own or size <= 0 for size, own in zip(grid, threads, strict=True) if own):
        wrong.append(f"a grid of {grid} in threadgroups of {threads}: they must be whole, and one at least")
    if buffers > MOST_BUFFERS:
        wrong.append(f"{buffers} buffers: Metal has {MOST_BUFFERS}")
    if shared > MOST_BYTES:
        wrong.append(f"{shared} bytes of threadgroup memory: Metal has {MOST_BYTES}")
    return wrong


@cache
def compiled(text: str, rules: bool) -> tuple[tuple[str, ...], int]:
    """What is wrong with a kernel's text, and how many bytes of threadgroup memory it declares."""
    prelude = _prelude()
    assert text.startswith(prelude)
    before = prelude.count("\n")
    text = re.sub(r"^\[\[kernel\]\]", "__kernel", text, flags=re.MULTILINE)  # an attribute there, a keyword here
    name = "kernel.metal"
    unit = _INDEX.parse(name, _FLAGS, [(name, text)])
    lines = text.splitlines()
    wrong: list[str] = []
    for found in unit.diagnostics:
        line = found.location.line if _within(found, name) else 0
        allowed = found.option == "-Wcast-qual" and 0 < line <= before  # by `writable`, in the prelude
        if found.severity >= Diagnostic.Warning and not allowed:
            wrong.append(f"{lines[line - 1].strip() if line else 'elsewhere'}: {found.spelling}")
    own = [cursor for cursor in unit.cursor.get_children() if _within(cursor, name) and cursor.location.line > before]
    if rules:
        wrong += broken(text, own)
    return tuple(wrong), sum(_threadgroup_bytes(cursor) for cursor in own[-1:])


@cache
def _prelude() -> str:
    return METAL_PRELUDE.read_text()


def _within(found: Diagnostic | Cursor, name: str) -> bool:
    return found.location.file is not None and found.location.file.name == name


def _threadgroup_bytes(kernel: Cursor) -> int:
    """The bytes of the threadgroup arrays that a kernel declares."""
    declared = (
        variable
        for body in kernel.get_children()
        if body.kind.name == "COMPOUND_STMT"
        for statement in body.get_children()
        if statement.kind.name == "DECL_STMT"
        for variable in statement.get_children()
        if variable.kind.name == "VAR_DECL" and "__local" in variable.type.spelling
    )
    return sum(-(-variable.type.get_size() // 16) * 16 for variable in declared)  # each may need to begin at a float4
