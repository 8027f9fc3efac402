"""What MLX would hand to Metal is valid, for all kernels, types and address spaces; and the checks find what is not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from draftmill.kernels.gpu.launch import CONSTANT_SIZE, METAL_PRELUDE, TYPES
from draftmill.kernels.gpu.source import Kernel, parse, read_kernels
from tests.kernels.lint import lint
from tests.kernels.metal.check import check
from tests.kernels.metal.launches import Launched, launches
from tests.kernels.metal.planted import NORM, PLANTED, statement

KERNELS = {name for path in METAL_PRELUDE.parents[1].rglob("*.metal") for name in read_kernels(path)}
IN_EVERY_TYPE = pytest.mark.parametrize("dtype", TYPES, ids=str)


@IN_EVERY_TYPE
def test_every_kernel_is_launched_by_the_tests(dtype: mx.Dtype) -> None:
    assert {launched.kernel.name for launched in launches(dtype)} == KERNELS


@IN_EVERY_TYPE
def test_every_launch_is_metal(dtype: mx.Dtype) -> None:
    seen: set[Kernel] = set()
    for launched in launches(dtype):
        wrong = check(launched, rules=launched.kernel not in seen)
        assert wrong == [], launched
        seen.add(launched.kernel)


def variants(name: str) -> list[Launched]:
    """A launch of a kernel for each combination of types and address spaces."""
    of_kernel = (launched for dtype in TYPES for launched in launches(dtype) if launched.kernel.name == name)
    return list({(launched.inputs, launched.outputs): launched for launched in of_kernel}.values())


def edited(path: Path, old: str, new: str) -> tuple[str, dict[str, Kernel]]:
    text = path.read_text().replace(old, new, 1)
    assert text != path.read_text(), "there is nothing to edit"
    return text, parse(text)


def found(launched: Launched, pattern: str, rules: bool = True) -> bool:
    return any(re.search(pattern, line) for line in check(launched, rules))


@pytest.mark.parametrize("what", PLANTED)
def test_planted_errors_are_found(what: str) -> None:
    said, old, new, path, name = PLANTED[what]
    text, kernels = edited(path, old, new)
    assert any(re.search(said, line) for line in lint(text)) or any(
        found(replace(launched, kernel=kernels[name or path.stem]), said, rules=i == 0)
        for i, launched in enumerate(variants(name or path.stem))
    )


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("1056 threads", {"threads": 1056}),
        ("48 threads", {"threads": 48}),
        (r"a grid of \[0, 1, 1\]", {"groups": (0, 1, 1)}),
    ],
)
def test_launches_stay_within_limits(said: str, change: dict[str, Any]) -> None:
    assert found(replace(variants(NORM.stem)[0], **change), said)


def test_metal_has_31_buffers() -> None:
    more = [f"const device T* more{i}" for i in range(26)]
    for count in (25, 26):
        (kernel,) = edited(NORM, "const device T* x,", ", ".join([*more[:count], "const device T* x,"]))[1].values()
        launched = variants(NORM.stem)[-1]
        inputs = (launched.inputs[0],) * count + launched.inputs
        assert found(replace(launched, kernel=kernel, inputs=inputs), "buffers: Metal has 31") is (count == 26)


def test_an_input_is_written_by_one_word() -> None:
    _, old, new, *_ = statement("", "writable<T>(x)[begin] = x[begin];")
    (kernel,) = edited(NORM, old, new)[1].values()
    large = [launched for launched in variants(NORM.stem) if launched.inputs[0][0] == (CONSTANT_SIZE,)]
    assert {launched.inputs[0][1] for launched in large} == set(TYPES)
    assert all(check(replace(launched, kernel=kernel)) == [] for launched in large)
