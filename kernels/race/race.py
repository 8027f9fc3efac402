"""The race: forms of an operation run side by side on this machine, and the fastest that is right is remembered."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import mlx.core as mx

from . import measurements
from .keys import Key

CALLS, REPEATS = 16, 5
"""Calls of an operation in a round, about as many as a model has layers; and the rounds that are timed."""

HOPELESS, ENOUGH = 1.5, 200.0
"""A form that has taken so many times as long as another one, or so many milliseconds in all, is not timed again after
two rounds.
"""

BOUNDS = {mx.float32: 1e-3, mx.float16: 1e-2, mx.bfloat16: 3e-2, mx.int32: 0.0}
"""The error that each type of number excuses, relative to the largest output; float32 may go through TF32 units, and
tokens are the same or wrong.
"""

Outputs = Sequence[mx.array]

Call = Callable[[int, Outputs], Outputs]
"""The outputs of an operation in the i-th of a round's layers, `after` those of the layer before it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Form:
    """One way to run an operation.

    `round` sets up the i-th round. Rounds have lengths that earlier ones had not; what a form prepares of them it
    prepares once for all calls, as in real rounds. `checks` are further calls, which are compared and not timed.
    """

    round: Callable[[int], Call]
    checks: tuple[Callable[[], Outputs], ...] = ()

    def checked(self) -> Iterator[list[mx.array]]:
        """The outputs, as float32, of all that forms must agree on: a round's second layer, and the checks.

        So all that a round launches has run, and been compiled, before one is timed.
        """
        layers = self.round(0)
        for call in (lambda: layers(1, layers(0, ())), *self.checks):
            outputs = [array.astype(mx.float32) for array in call()]
            mx.eval(outputs)
            yield outputs


def after(x: mx.array, before: Outputs) -> mx.array:
    """x, which the device cannot read until the arrays `before` are there.

    A round's layers wait for each other. `mx.depends` says so to MLX only: the device would run them side by side.
    """
    return _after(x, *(array[(slice(1),) * array.ndim].reshape(1) for array in before)) if before else x


@partial(mx.compile, shapeless=True)
def _after(x: mx.array, *firsts: mx.array) -> mx.array:
    for first in firsts:
        x = mx.where(mx.array(True), x, first.astype(x.dtype))
    return x


@dataclass(frozen=True)
class Contest:
    """One operation at one shape. `key` begins with the operation's name; `make` sets up its forms, reference first."""

    key: Key
    dtype: mx.Dtype
    make: Callable[[], Mapping[str, Form]]


@dataclass(frozen=True)
class Result:
    """Which form won a contest, what each one took, and why others were dropped."""

    winner: str
    milliseconds: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def race(contests: Iterable[Contest], cache: Path, force: str | None = None) -> dict[Key, Result]:
    """The result of every contest: from `cache`, a JSON file, if this machine has run it before with these kernels.

    `force` names the form that wins wherever it runs right.
    """
    known = read(cache)
    results: dict[Key, Result] = {}
    warned: set[tuple[str | int, str]] = set()
    for contest in contests:
        result = known.get(contest.key)
        if result is None or (force and result.winner != force and force not in result.dropped):
            result = run(contest, force)
            if not force:
                known[contest.key] = result
                write(cache, known)
        for form, reason in result.dropped.items():
            if (operation := contest.key[0], form) not in warned:
                log.warning("%s: %s is dropped, stock MLX runs: %s", operation, form, reason)
                warned.add((operation, form))
        results[contest.key] = result
    return results


def run(contest: Contest, force: str | None = None) -> Result:
    """Check every form of a contest against the first one, then time those that are right, in turn."""
    forms = dict(contest.make())
    reference = next(iter(forms))
    expected = list(forms[reference].checked())
    dropped: dict[str, str] = {}
    for name in list(forms)[1:]:
        if reason := wrong(forms[name], expected, BOUNDS[contest.dtype]):
            dropped[name] = reason
            del forms[name]
    if force in forms:
        return Result(force, {}, dropped)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for repeat in range(REPEATS):
        best = min(min(taken, default=float("inf")) for taken in times.values())
        for name, form in forms.items():
            taken = times[name]
            if len(taken) < 2 or (min(taken) < HOPELESS * best and sum(taken) * CALLS < ENOUGH):
                taken.append(_milliseconds(form, 1 + repeat))
    # One interruption must not decide: it is outvoted where a form was timed often, and left out where only twice.
    medians = {name: round(statistics.median_low(taken), 4) for name, taken in times.items()}
    return Result(min(medians, key=lambda name: medians[name]), medians, dropped)


def wrong(form: Form, expected: Sequence[Outputs], bound: float) -> str | None:
    """Why a form cannot run here, in one line; None if it gives what is expected."""
    try:
        checked = list(form.checked())
    except Exception as error:  # whatever a compiler or driver objects to
        return f"it fails: {(str(error) or type(error).__name__).splitlines()[0][:200]}"
    for found, right in zip(checked, expected, strict=True):
        if reason := difference(found, right, bound):
            return reason
    return None


def difference(found: Outputs, expected: Outputs, bound: float) -> str | None:
    """How outputs differ from those expected by more than the bound, in one line; None if they do not."""
    for output, right in zip(found, expected, strict=True):
        if output.shape != right.shape:
            return f"it gives {output.shape} for {right.shape}"
        error = float(mx.abs(output - right).max() / mx.maximum(mx.abs(right).max(), 1e-6))
        if not error <= bound:  # a NaN is not below the bound
            return f"it disagrees with its reference by {error:.2g}, more than {bound:g}"
    return None


def read(cache: Path) -> dict[Key, Result]:
    """What this machine's races gave, with these kernels and this MLX; nothing if there is no such file."""
    try:
        return {
            tuple(entry["key"]): Result(**entry["result"])
            for entry in measurements.read(cache).get(measurements.machine(), [])
        }
    except (TypeError, KeyError):
        return {}


def write(cache: Path, results: Mapping[Key, Result]) -> None:
    """Keep results for this machine."""
    measurements.write(
        cache, measurements.machine(), [{"key": key, "result": asdict(result)} for key, result in results.items()]
    )


def _milliseconds(form: Form, round: int) -> float:
    """A call's milliseconds, in a round of them: one graph, in which each waits for the one before it."""
    mx.synchronize()
    start = time.perf_counter()
    call, outputs = form.round(round), ()
    for layer in range(CALLS):
        outputs = call(layer, outputs)
    mx.eval(outputs)
    return (time.perf_counter() - start) / CALLS * 1000
