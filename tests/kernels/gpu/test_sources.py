"""Every kernel of the project passes the lint, and the lint refuses what it must."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import draftmill.kernels
from draftmill.kernels.gpu.source import read_kernels
from tests.kernels.lint import METAL_ONLY, lint

SOURCES = sorted(Path(next(iter(draftmill.kernels.__path__))).rglob("*.metal"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_sources_are_portable(source: Path) -> None:
    assert lint(source.read_text()) == []
    assert read_kernels(source)


@pytest.mark.parametrize("name", sorted(METAL_ONLY))
def test_what_is_for_metal_only_could_not_be_portable(name: str) -> None:
    (source,) = (path for path in SOURCES if name in read_kernels(path))
    wrong = lint(source.read_text(), metal_only=())
    assert wrong
    assert all(line.startswith(f"{name}: ") and line.endswith("not in the portable part") for line in wrong)


RIGHT = """
// Sums; a double would be refused, but not in a comment.
template <typename P>
METAL_FUNC float twice(P x, int at) {
  return 2.0f * float(x[at]);
}

METAL_FUNC float third(const device float* x, thread float& y) {
  y = x[2] * x[1];
  return y;
}

kernel void sum(
    const device float* x,  // [N] (all of them)
    device T* y) {
  threadgroup float s[N];
  const device float* row = x + 3;
  y[0] = T(twice(x, 0) + 1e-3f);
}
"""


def test_a_file_is_read_into_kernels() -> None:
    assert lint(RIGHT) == []
    path = Path(__file__).parents[1] / "emulator" / "prelude.h"
    assert read_kernels(path) == {}


WRONG = {
    "include": ("// Sums", "#include <metal_stdlib>\n// Sums"),
    "every number to be finite": ("return y;", "return isinf(y) ? 0.0f : y;"),
    "a word of one compiler": ("return y;", "__syncthreads();"),
    "Metal has no long long": ("threadgroup float s", "long long s"),
    "what MLX writes": ("int at)", "int at [[thread_index_in_simdgroup]])"),
    "pass shapes": ("x[at]", "x[x_shape[0]]"),
    "not handed to helpers": ("thread float& y", "threadgroup float* y"),
    "a kernel takes": ("const device float* x,  //", "const float* x,  //"),
    "writes nothing": ("    device T* y", "    const device T* y"),
    "no kernel": ("kernel void", "void"),
    "not in the portable part": ("return y;", "simdgroup_barrier(mem_flags::mem_none);"),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_lint_refuses(what: str) -> None:
    text = RIGHT.replace(*WRONG[what])
    found = lint(text)
    assert text != RIGHT
    assert any(re.search(what, line) for line in found), found
