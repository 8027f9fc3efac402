"""The checks of this machine's engine, in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import mlx.core as mx

from ...kernels.gpu.launch import on_gpu
from ...kernels.gpu.source import Launch
from ...kernels.race.contestants import OperationShape
from ..models import boxed
from ..models.precision import chip, emulates_bfloat16
from .boxed_pair import BoxedPair
from .check import Check, Skipped
from .kernels import Known, compare_kernels, prove_pools
from .published import PUBLISHED
from .speed import Speed
from .tokens import FAMILIES, compare_family, compare_tokens, greedy


@dataclass(frozen=True)
class Sizes:
    """How much is checked, so that all of it takes two minutes on two cores of a CPU, and on a GPU.

    After `kernel_seconds` no other variant of a kernel is compiled. `tokens` are of each of the `prompts`.
    """

    kernel_seconds: float = 40.0
    prompts: int = 8
    tokens: int = 12
    timed_rows: Sequence[int] = (1, 8)
    timed_tokens: int = 8

    @staticmethod
    def here() -> Sizes:
        """More rows and tokens where a GPU generates them."""
        on_cpu = mx.default_device() == mx.cpu
        return Sizes() if on_cpu else Sizes(tokens=48, timed_rows=(1, 8, 32), timed_tokens=128)


TOGETHER, ALONE = ("kernels", *FAMILIES, "float32", "own-type"), "speed"
"""Parts that run at the same time, for most of it is compiling, and the one that must have the machine to itself."""


def parts(folder: Path, sizes: Sizes) -> dict[str, Callable[[], Iterator[Check]]]:
    """The checks of each part, in their order; `folder` is the cache of models and measurements."""
    return {
        "kernels": partial(of_kernels, folder, sizes),
        **{family: partial(of_stock_forms, family) for family in FAMILIES},
        "float32": partial(of_float32, folder, sizes),
        "own-type": partial(of_own_type, folder, sizes),
        "speed": partial(of_speed, folder, sizes),
    }


def of_kernels(folder: Path, sizes: Sizes) -> Iterator[Check]:
    half = mx.float16 if emulates_bfloat16(chip()) else mx.bfloat16
    shapes: dict[str, Callable[[], Iterable[OperationShape]]] = {boxed.NAME: lambda: BoxedPair.load(folder).shapes}
    shapes |= {name: partial(published.shapes, half) for name, published in PUBLISHED.items()}
    yield from kernel_checks(shapes, sizes.kernel_seconds)
    yield Check("pools", prove_pools)


def of_stock_forms(family: str) -> Iterator[Check]:
    yield Check(f"stock forms, {family}", partial(compare_family, family))


def of_float32(folder: Path, sizes: Sizes) -> Iterator[Check]:
    yield from token_checks("float32", cache(partial(BoxedPair.load, folder, mx.float32)), sizes)


def of_own_type(folder: Path, sizes: Sizes) -> Iterator[Check]:
    yield from token_checks("this machine's type", apart_from_float32(cache(partial(BoxedPair.load, folder))), sizes)


def of_speed(folder: Path, sizes: Sizes) -> Iterator[Check]:
    speed = cache(partial(Speed.load, folder))
    for rows in sizes.timed_rows:
        name = f"speed, {rows} row{'s' if rows > 1 else ''}"
        yield Check(name, lambda rows=rows: speed().compare(rows, sizes.timed_tokens), judged=False)


def kernel_checks(
    shapes: dict[str, Callable[[], Iterable[OperationShape]]], seconds: float, launch: Launch = on_gpu
) -> Iterator[Check]:
    """The kernels that models need, by their names; none twice, and so many seconds for all of them."""
    known = Known.within(seconds)
    for name, of in shapes.items():
        yield Check(f"kernels, {name}", partial(compare_kernels, of, known, launch))


def token_checks(name: str, load: Callable[[], BoxedPair], sizes: Sizes) -> Iterator[Check]:
    """A pair without drafts and with them, all rows together."""
    requests = cache(lambda: load().requests(sizes.prompts, sizes.tokens))
    expected = cache(lambda: [greedy(load().model, request) for request in requests()])
    for drafts, depth in (("no drafts", 0), ("drafts", None)):
        yield Check(
            f"tokens, {name}, {drafts}", lambda depth=depth: compare_tokens(load(), requests(), expected(), depth)
        )


def apart_from_float32(load: Callable[[], BoxedPair]) -> Callable[[], BoxedPair]:
    """What loads a pair in this machine's type, unless that was checked already."""

    def loaded() -> BoxedPair:
        if mx.default_device() == mx.cpu:
            raise Skipped("on a CPU models run in float32, which was compared already")
        return load()

    return loaded
