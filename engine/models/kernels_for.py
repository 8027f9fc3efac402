"""Chooses, as a pair is loaded, which form of each operation runs: by a race on this machine, or by what is forced."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import mlx.core as mx

from ...kernels.gpu.launch import on_gpu
from ...kernels.operations import Operations
from ...kernels.pages.proof import flaw
from ...kernels.race.contestants import AttentionShape, OperationShape, RotaryShape, contests
from ...kernels.race.keys import KERNEL, STOCK
from ...kernels.race.race import race
from ...kernels.variants import compiled
from .boxed import ModelError

log = logging.getLogger(__name__)

VARIABLE = "DRAFTMILL_KERNELS"
"""Environment variable: `race` (the default), or the form that runs wherever it can: `kernel` or `stock`."""


class Target(Protocol):
    """A target, as far as the race knows it: its operations, and what they work on."""

    operations: Operations

    @property
    def dtype(self) -> mx.Dtype: ...

    @property
    def shapes(self) -> list[OperationShape]: ...


class Raced(Protocol):
    """A draft, as far as the race knows it."""

    def join(self) -> None:
        """Join the products that run as one."""
        ...

    @property
    def shapes(self) -> Sequence[OperationShape]:
        """What its operations work on."""
        ...


def choose_kernels(target: Target, draft: Raced | None, cache: Path) -> None:
    """Give a pair the operations that win on this machine, compiled for all that serving can ask of them.

    Without a GPU, which kernels need, everything is stock.

    Raises:
        ModelError: the environment variable has another value.
    """
    wish = os.environ.get(VARIABLE, "race")
    if wish not in ("race", KERNEL, STOCK):
        raise ModelError(f"{VARIABLE}={wish} is unknown: set it to race, {KERNEL} or {STOCK}")
    if mx.default_device() == mx.cpu:
        return
    if wish == STOCK:
        target.operations = Operations(in_place=False)
        return
    if draft:
        draft.join()  # joint products are those that run
    if reason := flaw(on_gpu):
        log.warning("kernels cannot write keys and values in place here, so no round runs ahead: %s", reason)
    found = shapes(target, draft)
    if reason:  # nothing else reads or writes pools by kernels
        found = [shape for shape in found if not isinstance(shape, AttentionShape | RotaryShape)]
    results = race(contests(found), results_file(cache), KERNEL if wish == KERNEL else None)
    operations = Operations({key: result.winner for key, result in results.items()}, in_place=reason is None)
    target.operations = compiled(operations, found)


def shapes(target: Target, draft: Raced | None) -> list[OperationShape]:
    """What a pair's operations work on, each shape once."""
    found: list[OperationShape] = list(target.shapes)
    if draft:
        found += draft.shapes
    return list(dict.fromkeys(found))


def results_file(cache: Path) -> Path:
    """Where races are remembered."""
    return cache / "races.json"
