"""Every kernel, in every variant that a model's shapes can need, beside plain MLX on the same random numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from ...kernels.gpu.launch import Variant, on_gpu
from ...kernels.gpu.source import Launch
from ...kernels.operations import Operations
from ...kernels.pages.pool import LayerPool
from ...kernels.pages.proof import flaw
from ...kernels.products.quantisation import Quantisation, Weight
from ...kernels.products.tiling import RACED, raced
from ...kernels.race.contestants import ChoiceShape, OperationShape, ProductShape, contests, filled
from ...kernels.race.keys import KERNEL, Key
from ...kernels.race.noise import noise, quantised_noise
from ...kernels.race.race import BOUNDS, difference
from ...kernels.variants import Call, Recorder, calls
from .check import Skipped, Wrong

NO_GPU = "MLX computes on a CPU here, where no kernel of ours runs"

SEED = 7
"""Of the numbers of a call, so that kernel and reference have the same."""


@dataclass
class Known:
    """The variants that were compared already, and until when there is time; in seconds of the monotonic clock."""

    end: float
    variants: set[Variant]

    @staticmethod
    def within(seconds: float) -> Known:
        """None so far, and so much time."""
        return Known(time.monotonic() + seconds, set())


@dataclass(frozen=True)
class Noise:
    """Random inputs; pools are written by `launch` where kernels write them."""

    launch: Launch

    def array(self, shape: Sequence[int], dtype: mx.Dtype = mx.float32) -> mx.array:
        return noise(*shape, dtype=dtype)

    def weight(self, lines: int, length: int, quantisation: Quantisation, dtype: mx.Dtype) -> Weight:
        return quantised_noise(lines, length, quantisation, dtype)

    def pool(self, operations: Operations, pages: int, heads: int, dim: int, dtype: mx.Dtype) -> LayerPool:
        mx.random.seed(SEED)
        return filled(pages, heads, dim, dtype, self.launch if operations.in_place else None)


def compare_kernels(of: Callable[[], Iterable[OperationShape]], known: Known, launch: Launch = on_gpu) -> str:
    """Compare what `launch` gives with what plain MLX gives, at the shapes `of` a model.

    Raises:
        Wrong: some kernels give something else, or fail.
        Skipped: there is no GPU, or time was over before all had been compared.
    """
    if launch is on_gpu and mx.default_device() == mx.cpu:
        raise Skipped(NO_GPU)
    mx.random.seed(SEED)
    before, wrong, late = len(known.variants), dict[str, str](), False
    for shape, kernels in in_all_forms(of(), launch):
        for name, call in new_calls(shape, kernels, known):
            if late := time.monotonic() > known.end:
                break
            if name not in wrong and (reason := disagreement(call, kernels, bound(shape))):
                wrong[name] = reason
        mx.clear_cache()
        if late:
            break
    count = f"{len(known.variants) - before} variants"
    if wrong:
        raise Wrong("; ".join(f"{name}: {reason}" for name, reason in wrong.items()))
    if late:
        raise Skipped(f"time was over after {count}, which agree with their references")
    return f"{count} agree with their references"


def in_all_forms(shapes: Iterable[OperationShape], launch: Launch) -> Iterator[tuple[OperationShape, Operations]]:
    """Each shape with kernels for it, in each form that is raced here."""
    for shape in shapes:
        every: dict[str, list[Key]] = {}
        for contest in contests([shape]):
            for form in forms(shape, contest.key):
                every.setdefault(form, []).append(contest.key)
        for form, keys in every.items():
            yield shape, Operations(dict.fromkeys(keys, form), launch, in_place=True)


def forms(shape: OperationShape, key: Key) -> Collection[str]:
    """The kernels that a contest of a shape has; those of products end their keys with the number of rows."""
    if isinstance(shape, ProductShape):
        return raced(RACED[int(key[-1])], shape.length, shape.quantisation)
    return [KERNEL]


def new_calls(shape: OperationShape, kernels: Operations, known: Known) -> Iterator[tuple[str, Call]]:
    """The calls that need a variant which is not known yet, with the names of their operations."""
    for name, call in calls(shape, Noise(kernels.launch)):
        recorder = Recorder()
        call(replace(kernels, launch=recorder))
        if recorder.variants <= known.variants:
            continue
        yield name, call
        known.variants |= recorder.variants


def bound(shape: OperationShape) -> float:
    """The error that is excused, relative to the largest output; tokens are the same or wrong."""
    return 0.0 if isinstance(shape, ChoiceShape) else BOUNDS[shape.dtype]


def disagreement(call: Call, kernels: Operations, bound: float) -> str | None:
    """How far a call's outputs are from those of plain MLX, in one line, if that is too far."""

    def outputs(operations: Operations) -> list[mx.array]:
        mx.random.seed(SEED)
        arrays = [array.astype(mx.float32) for array in call(operations) if array.size]
        mx.eval(arrays)
        return arrays

    expected = outputs(Operations(in_place=False))
    try:
        found = outputs(kernels)
    except Exception as error:  # whatever a compiler or driver objects to
        return f"it fails: {(str(error) or type(error).__name__).splitlines()[0][:200]}"
    return difference(found, expected, bound)


def prove_pools(launch: Launch = on_gpu) -> str:
    """Write pools in place with several rounds in flight.

    Raises:
        Wrong: a round read other keys than were written.
        Skipped: there is no GPU.
    """
    if launch is on_gpu and mx.default_device() == mx.cpu:
        raise Skipped("not needed on a CPU, where MLX scatters keys and values and nothing runs ahead")
    if reason := flaw(launch):
        raise Wrong(reason)
    return "written in place, with twelve rounds in flight"
