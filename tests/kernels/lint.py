"""Refuses in a kernel's source what C++ allows and Metal, or this project's portable part of Metal, does not."""

from __future__ import annotations

import re

from draftmill.kernels.gpu.source import parse

METAL_ONLY = {"quantized_matmul_simdgroup.metal"}
"""Files of kernels that CUDA does not get, because they use simdgroup matrices."""

MOST_BUFFERS = 31
SPACES = {"device", "constant", "threadgroup", "thread"}

_WORDS = {
    r"\bdouble\b": "Metal has no double",
    r"\bstd::": "Metal has no std",
    r"\blong long\b": "Metal has no long long",
    r"\b(?:static|virtual|mutable|goto)\b": "no static, virtual, mutable or goto in Metal",
    r"\b(?:throw|try|catch)\b": "no exceptions in Metal",
    r"\b(?:new|delete)\b": "no memory to allocate in Metal",
    r"\b(?:dynamic_cast|typeid)\b": "no run-time types in Metal",
    r"\[[&=]?\]\s*\(": "no lambdas in Metal",
    r"#\s*include\b": "a kernel stands alone: MLX includes Metal's library",
    r"\b(?:asm|printf|assert)\b": "not in Metal",
    r"\b(?:blockIdx|threadIdx|blockDim|gridDim|__\w+)\b": "a word of CUDA",
    r"\b(?:INFINITY|NAN|HUGE_VALF?|isnan|isinf|isfinite)\b": "fast math takes every number to be finite",
    r"\b\w+_(?:shape|strides|ndim)\b": "MLX would pass shapes, in another way to each backend",
    r"\b\d+\.\d*(?:e-?\d+)?(?![\de.fF])": "a literal without f is a double outside Metal",
}
_PORTABLE = {r"\bsimdgroup_(?:matrix|load|store|multiply|barrier)\w*": "not in the portable part"}
_FUNCTION = re.compile(r"^(?:METAL_FUNC|inline)[^;{=]*?\b(\w+)\(([^)]*)\)\s*\{(.*?)^\}", re.MULTILINE | re.DOTALL)
_LOCAL_POINTER = re.compile(r"^[ \t]*((?:const\s+)?(?:\w+\s+)?\w+)\s*[*&]\s*\w+\s*[=;]", re.MULTILINE)


def lint(text: str, portable: bool = True) -> list[str]:
    """What is wrong with a `.metal` file, a line each; one that is not `portable` is for Metal only."""
    kernels = parse(text)
    wrong = (
        [] if kernels else ["no kernel: `kernel void name(...) {` begins one, a brace at a line's beginning ends it"]
    )
    bare = re.sub(r"//[^\n]*", "", text)
    for pattern, why in (_WORDS | (_PORTABLE if portable else {})).items():
        wrong += [f"line {_line(bare, match)}: {match[0]}: {why}" for match in re.finditer(pattern, bare)]
    for kernel in kernels.values():
        buffers = len(kernel.inputs) + len(kernel.outputs)
        if buffers > MOST_BUFFERS:
            wrong.append(f"{kernel.name}: {buffers} buffers: Metal has {MOST_BUFFERS}")
        if not kernel.outputs:
            wrong.append(f"{kernel.name}: writes nothing")
    for match in re.finditer(r"^kernel void \w+\(([^)]*)\)", bare, re.MULTILINE):
        wrong += [
            f"line {_line(bare, match)}: {parameter.strip()}: a kernel takes `const device T* in` and `device T* out`"
            for parameter in match[1].split(",")
            if not re.fullmatch(r"\s*(?:const )?device \w+\* \w+", parameter)
        ]
    wrong += _helpers(next(iter(kernels.values())).header if kernels else bare)
    for match in _LOCAL_POINTER.finditer(bare):
        if not SPACES & set(match[1].split()) and match[1].split()[0] != "return":
            wrong.append(f"line {_line(bare, match)}: {match[0].strip()}: a pointer without an address space")
    return wrong


def _helpers(header: str) -> list[str]:
    """What is wrong with the functions above the kernels."""
    wrong: list[str] = []
    calls: dict[str, set[str]] = {}
    outside = _FUNCTION.sub("", header)
    for name, parameters, body in _FUNCTION.findall(header):
        calls.setdefault(name, set()).update(re.findall(r"\b(\w+)\s*\(", body))
        for parameter in parameters.split(","):
            if re.search("[*&]", parameter) and not SPACES & set(parameter.split()):
                wrong.append(f"{name}: {parameter.strip()}: a pointer without an address space")
        if re.search(r"\bthreadgroup\s+\w+\s+\w+\[", body):
            wrong.append(f"{name}: threadgroup memory is declared in kernels only")
        if "threadgroup" in parameters:
            wrong.append(f"{name}: threadgroup memory is not handed to helpers: CUDA has no word for it")
    for match in re.finditer(r"^(?!constant\b)(?:constexpr |const )+.*=", outside, re.MULTILINE):
        wrong.append(f"{match[0].strip()}: a constant of the program begins with `constant`")
    wrong += [f"{name}: calls itself" for name in calls if name in _reached(name, calls)]
    return wrong


def _reached(name: str, calls: dict[str, set[str]]) -> set[str]:
    """Functions that are called from `name`, however far away."""
    reached: set[str] = set()
    ahead = [name]
    while ahead:
        for called in calls.get(ahead.pop(), set()) - reached:
            reached.add(called)
            ahead.append(called)
    return reached


def _line(text: str, match: re.Match[str]) -> int:
    return text.count("\n", 0, match.start()) + 1
