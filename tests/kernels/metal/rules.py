"""Rules of Metal that OpenCL does not have, checked in the syntax tree of a kernel's text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import mlx.core as mx
from clang.cindex import Cursor

SPACES = {"device", "constant", "threadgroup", "thread"}

FUNCTIONS = {"FUNCTION_DECL", "FUNCTION_TEMPLATE"}
CASTS = {"CSTYLE_CAST_EXPR", "CXX_REINTERPRET_CAST_EXPR", "CXX_STATIC_CAST_EXPR"}
VARIABLES = {"VAR_DECL", "PARM_DECL", "FIELD_DECL"}
TYPED = FUNCTIONS | CASTS | VARIABLES | {"TYPE_ALIAS_DECL"}
MIXED = VARIABLES | {"CONDITIONAL_OPERATOR"}

LIBRARY = """
abs absdiff acos acosh all any asin asinh atan atan2 atanh ceil clamp clz copysign cos cosh cross ctz distance dot exp
exp10 exp2 extract_bits fabs fdim floor fma fmax fmin fmod fract frexp ilogb isfinite isinf isnan isnormal ldexp length
log log10 log2 mad24 max max3 median3 min min3 mix modf mul24 mulhi nextafter normalize popcount pow powr reflect
refract reverse_bits rint rotate round rsqrt saturate select sign signbit sin sincos sinh smoothstep sqrt step tan tanh
trunc
"""
"""Functions of Metal's library: one of ours with such a name makes calls ambiguous, or hides it."""


def broken(text: str, declared: Sequence[Cursor]) -> list[str]:
    """Which rules are broken by what a text declares behind the prelude, a line each."""
    wrong: list[str] = []
    source = text.encode()
    for cursor in declared:
        if cursor.kind.name == "VAR_DECL" and "constant" not in _words(source, cursor):
            wrong.append(f"{cursor.spelling}: a variable of the program is `constant`")
        if cursor.spelling in _of_mlx() or cursor.spelling in LIBRARY.split():
            wrong.append(f"{cursor.spelling}: Metal or MLX has this name")
        for inner in cursor.walk_preorder():
            pointer = _type_as_written(source, inner)
            if re.search("[*&]", pointer) and not SPACES & set(re.findall(r"\w+", pointer)):
                wrong.append(f"{pointer}: a pointer without an address space")
            elif inner.kind.name in MIXED and "__generic" in inner.type.spelling:
                wrong.append(f"{_written(source, inner)}: a pointer into any address space")
            if inner.kind.name == "LAMBDA_EXPR":
                wrong.append(f"{_written(source, inner)}: no lambdas in Metal")
    return wrong + _recursion(source, declared)


def _written(source: bytes, cursor: Cursor) -> str:
    return source[cursor.extent.start.offset : cursor.extent.end.offset].decode()


def _words(source: bytes, cursor: Cursor) -> set[str]:
    return set(re.findall(r"\w+", _written(source, cursor)))


def _type_as_written(source: bytes, cursor: Cursor) -> str:
    """The type that a declaration or a cast names, behind which there may be more; empty for anything else."""
    if cursor.kind.name not in TYPED:
        return ""
    written = _written(source, cursor)
    if cursor.kind.name in FUNCTIONS:
        return re.split(rf"\b{cursor.spelling}\s*\(", written)[0].rpartition(">")[2]
    if cursor.kind.name in CASTS:
        return re.split(r"[)]|>\(", written)[0]
    if cursor.kind.name == "TYPE_ALIAS_DECL":
        return written.partition("=")[2]
    if cursor.kind.name == "PARM_DECL":
        written = written.replace("[", "*")  # an array is handed over as a pointer
    return re.split(r"[=({\[]", written)[0]


def _recursion(source: bytes, declared: Sequence[Cursor]) -> list[str]:
    calls: dict[str, set[str]] = {}
    for cursor in declared:
        if cursor.kind.name in FUNCTIONS:
            body = _written(source, cursor).partition("{")[2]
            calls.setdefault(cursor.spelling, set()).update(re.findall(r"\b(\w+)\s*[(<]", body))
    return [f"{name}: calls itself" for name in calls if name in _reached(name, calls)]


def _reached(name: str, calls: dict[str, set[str]]) -> set[str]:
    """Functions that are called from `name`, however far away."""
    reached: set[str] = set()
    ahead = [name]
    while ahead:
        for called in calls.get(ahead.pop(), set()) - reached:
            reached.add(called)
            ahead.append(called)
    return reached


@cache
def _of_mlx() -> set[str]:
    """The names of what MLX puts before a kernel, in headers that its package brings along."""
    folder = Path(mx.__file__).parent / "include" / "mlx" / "backend" / "metal" / "kernels"
    names = ("utils.h", "defines.h", "bf16.h", "bf16_math.h", "complex.h", "logging.h")
    text = "".join((folder / name).read_text() for name in names)
    return set(re.findall(r"(?<=struct )\w+|(?<=#define )\w+|\w+(?=\()|\w+(?=;)", text))
