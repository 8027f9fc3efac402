"""Refuses in a kernel's source what Metal allows and CUDA or the reader of these files does not.

What Metal itself refuses, `metal.check` finds in the text that MLX writes.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from draftmill.kernels.gpu.source import parse

METAL_ONLY = {"quantized_matmul_simdgroup"}
"""Kernels that CUDA does not get, because they use simdgroup matrices."""

_WORDS = {
    r"#\s*include\b": "a kernel stands alone: MLX includes Metal's library",
    r"\b(?:INFINITY|NAN|HUGE_VALF?|isnan|isinf|isfinite)\b": "fast math takes every number to be finite",
    r"\[\[": "attributes are what MLX writes, in the signature",
    r"\b\w+_(?:shape|strides|ndim)\b": "MLX would pass shapes, in another way to each backend",
    r"\blong long\b": "Metal has no long long",
    r"\b__\w+": "a word of one compiler",
}
_PORTABLE = r"\bsimdgroup_(?:matrix|load|store|multiply|barrier)\w*"


def lint(text: str, metal_only: Collection[str] = METAL_ONLY) -> list[str]:
    """What is wrong with a `.metal` file, a line each."""
    kernels = parse(text)
    wrong = (
        [] if kernels else ["no kernel: `kernel void name(...) {` begins one, a brace at a line's beginning ends it"]
    )
    bare = re.sub(r"//[^\n]*", "", text)
    for pattern, why in _WORDS.items():
        wrong += [f"line {_line(bare, match)}: {match[0]}: {why}" for match in re.finditer(pattern, bare)]
    portable = [(name, kernel.body) for name, kernel in kernels.items() if name not in metal_only]
    for name, part in [*portable, ("helpers", next(iter(kernels.values())).header if kernels else bare)]:
        wrong += [f"{name}: {match[0]}: not in the portable part" for match in re.finditer(_PORTABLE, part)]
    wrong += [f"{kernel.name}: writes nothing" for kernel in kernels.values() if not kernel.outputs]
    for match in re.finditer(r"^kernel void \w+\(([^)]*)\)", bare, re.MULTILINE):
        wrong += [
            f"line {_line(bare, match)}: {parameter.strip()}: a kernel takes `const device T* in` and `device T* out`"
            for parameter in match[1].split(",")
            if not re.fullmatch(r"\s*(?:const )?device \w+\* \w+", parameter)
        ]
    helpers = next(iter(kernels.values())).header if kernels else bare
    if re.search(r"\bthreadgroup\b", helpers):
        wrong.append("threadgroup memory is not handed to helpers: CUDA has no word for it")
    return wrong


def _line(text: str, match: re.Match[str]) -> int:
    return text.count("\n", 0, match.start()) + 1
