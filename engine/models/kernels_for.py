"""Chooses, as a pair is loaded, which form of each operation runs: by a race on this machine, or by what is forced."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx

from ...kernels.operations import KERNEL, STOCK, Operations
from ...kernels.race.contestants import AttentionShape, RotaryShape, Shape, contests
from ...kernels.race.race import race
from ..drafting.dflash import DFlashDraft
from .boxed import ModelError
from .linear import products
from .targets.transformer import Transformer

VARIABLE = "DRAFTMILL_KERNELS"
"""Environment variable: `race` (the default), or the form that runs wherever it can: `kernel` or `stock`."""


def choose(target: Transformer, draft: DFlashDraft | None, cache: Path) -> None:
    """Give a pair the operations that win on this machine. Without a GPU, which kernels need, everything is stock.

    Raises:
        ModelError: the environment variable has another value.
    """
    wish = os.environ.get(VARIABLE, "race")
    if wish not in ("race", KERNEL, STOCK):
        raise ModelError(f"{VARIABLE}={wish} is unknown: set it to race, {KERNEL} or {STOCK}")
    if mx.default_device() == mx.cpu or wish == STOCK:
        return
    if draft:
        draft.join()  # joint products are those that run
    results = race(contests(shapes(target, draft)), results_file(cache), KERNEL if wish == KERNEL else None)
    target.operations = Operations({key: result.winner for key, result in results.items()})


def shapes(target: Transformer, draft: DFlashDraft | None) -> list[Shape]:
    """What a pair's operations work on, each shape once."""
    found: list[Shape] = list(target.shapes)
    if draft:
        layout = draft.layout
        attention = AttentionShape(layout.heads, layout.kv_heads, layout.dim, target.dtype)
        found += [attention, RotaryShape(layout, target.dtype), *products(draft.linears, target.dtype)]
    return list(dict.fromkeys(found))


def results_file(cache: Path) -> Path:
    """Where races are remembered."""
    return cache / "races.json"
