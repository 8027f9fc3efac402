"""What the kernels' tests launch, in every type, recorded and not run: what must be valid Metal.

A test that takes a `Form` runs its kernels by it. Here it gets one that records, so a kernel that has a test is
recorded with the constants and the sizes of buffers that its own launcher chose: few elements make another text.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import inf
from pathlib import Path
from typing import Any, get_type_hints

import mlx.core as mx
import pytest

from draftmill.kernels.gpu.launch import CONSTANT_SIZE, encode
from draftmill.kernels.gpu.source import Input, Kernel, Memory
from tests.kernels.forms import Form

FOLDER = Path(__file__).parents[1]
ROOT = FOLDER.parents[1]

SEEDS = 2
"""So many seeds of random rounds suffice: others only differ in sizes."""

Buffer = tuple[tuple[int, ...], mx.Dtype]
"""A type, and a shape that stands for all that make the same text: MLX asks whether there are few elements."""


@dataclass(frozen=True)
class Launched:
    """What `source.Launch` was given."""

    kernel: Kernel
    inputs: tuple[Buffer, ...]
    constants: tuple[tuple[str, int | bool | mx.Dtype], ...]
    groups: tuple[int, int, int]
    threads: int
    outputs: tuple[mx.Dtype, ...]

    def handed_over(self) -> list[Any]:
        """What MLX would hand to Metal: name, text, the grid's three numbers and those of a threadgroup, and more."""
        inputs = [mx.zeros(shape, dtype) for shape, dtype in self.inputs]
        outputs = [((1,), dtype) for dtype in self.outputs]
        steps: list[dict[str, Any]] = []

        def launch(*arrays: mx.array) -> list[mx.array]:
            return encode(self.kernel, arrays, dict(self.constants), self.groups, self.threads, outputs, metal=True)

        mx.export_function(steps.append, launch, *inputs)
        (arguments,) = (step["arguments"] for step in steps if step.get("name") == "CustomKernel")
        return arguments


@cache
def launches(dtype: mx.Dtype) -> tuple[Launched, ...]:
    """All launches of the tests beside this folder in forms of a type, each once."""
    found: dict[Launched, None] = {}

    def record(
        kernel: Kernel,
        inputs: Sequence[Input],
        constants: Mapping[str, int | bool | mx.Dtype],
        groups: tuple[int, int, int],
        threads: int,
        outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
    ) -> list[mx.array]:
        buffers = tuple((_like(array), array.dtype) for array in inputs)
        made = tuple(kind for _, kind in outputs)
        found[Launched(kernel, buffers, tuple(constants.items()), groups, threads, made)] = None
        return [mx.zeros(shape, kind) for shape, kind in outputs]

    for test in _tests():
        for case in _cases(test):
            with suppress(AssertionError, pytest.fail.Exception), pytest.MonkeyPatch.context() as patch:
                more = {"monkeypatch": patch} if "monkeypatch" in get_type_hints(test) else {}
                test(form=Form(record, dtype, inf), **case, **more)  # zeros may not be what it expects
    return tuple(found)


def _like(given: Input) -> tuple[int, ...]:
    array = given.head if isinstance(given, Memory) else given
    return () if array.ndim == 0 else (1 if array.size < CONSTANT_SIZE else CONSTANT_SIZE,)


def _tests() -> Iterator[Callable[..., None]]:
    """The tests that run kernels in a form."""
    for path in sorted(FOLDER.rglob("test_*.py")):
        if "tests.kernels.forms import" in path.read_text():
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            for name, value in vars(module).items():
                if name.startswith("test_") and inspect.isfunction(value) and get_type_hints(value).get("form") is Form:
                    yield value


def _cases(test: Any) -> list[dict[str, Any]]:
    """What a test is called with beside its form, from its marks."""
    cases: list[dict[str, Any]] = [{}]
    for mark in test.pytestmark:
        names, rows = mark.args if mark.name == "parametrize" else ("form", ())
        if names != "form":
            split = names.split(",") if isinstance(names, str) else names
            rows = rows[:SEEDS] if names == "seed" else rows
            given = [dict(zip(split, row, strict=True)) for row in (_row(row, len(split)) for row in rows)]
            cases = [before | more for before, more in product(cases, given)]
    return cases


def _row(row: Any, length: int) -> Sequence[Any]:
    values = getattr(row, "values", None)  # of pytest.param
    return values if isinstance(values, tuple) else row if length > 1 else (row,)
