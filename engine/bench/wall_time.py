"""The published run: how long a whole dataset takes each model, by this engine and by others, in one table."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..models import boxed
from ..models.pairs import resolve
from ..state.memory import device_limit
from ..text import Prompt
from . import real, synthetic
from .dataset import dataset_line
from .measure import Cell, attempt
from .real import Real
from .replay import MIXED
from .report import Line, Table
from .shapes import SHAPES
from .synthetic import Synthetic, longest

NAME = "wall-time"

ARMS = ("mlx-batch", "adaptive", "dflash", "dflash-mlx", "vllm-mlx")

GIB = 1 << 30

SHARE = 0.75
"""Of what a GPU has, the most that weights may take: the rest is for what rows keep and for rounds."""

MOST_ON_CPU = 1 * GIB
"""Bytes of weights of the largest shape for which a CPU does not take hours."""


@dataclass(frozen=True)
class Weights:
    """Random weights in a published shape, of so many bits; acceptance is replayed, mixed by request."""

    shape: str
    bits: int = 16

    @property
    def name(self) -> str:
        return self.shape if self.bits == 16 else f"{self.shape}-{self.bits}bit"


@dataclass(frozen=True)
class WallTime:
    """What is run: so many requests, `rows` at a time. A shape's prompts have an eighth to twice of `context`
    tokens; each request is for up to `tokens`.
    """

    pair: str = boxed.NAME
    shapes: tuple[Weights, ...] = (
        Weights("qwen3-4b"),
        Weights("qwen3-4b", 4),
        Weights("qwen3.5-4b"),
        Weights("qwen3.5-35b-a3b", 4),
    )
    requests: int = 512
    rows: int = 32
    context: int = 256
    tokens: int = 256
    repeats: int = 1

    @property
    def models(self) -> tuple[str, ...]:
        """Names of all models; the first is the pair, which needs prompts, the others are shapes."""
        return (self.pair, *(weights.name for weights in self.shapes))

    def run(
        self, folder: Path, models: Collection[str], prompts: Sequence[Prompt], arms: Collection[str]
    ) -> Iterator[Table]:
        """One table with a line for each of the models that fits; notes say why others have none. It comes again after
        each model, which may take an hour, so that what was measured can be kept.
        """
        table = Table(f"whole run of {self.requests} requests, up to {self.tokens} new tokens", "model", seconds=True)
        for name in self.models:
            if name not in models:
                continue
            failure = Cell()
            if reason := self._unfit(name):
                table.notes.append(f"{name}: skipped, {reason}")
            elif line := attempt(failure, lambda name=name: self._line(name, folder, prompts, arms)):
                table.lines.append(line)
            else:
                table.facts.append({"model": name, "failed": failure.error})
            gc.collect()  # engines and their parts refer to each other
            mx.clear_cache()
            yield table

    def _unfit(self, name: str) -> str | None:
        limit = None if mx.default_device() == mx.cpu else device_limit()
        return next((unfit(weights, limit) for weights in self.shapes if weights.name == name), None)

    def _line(self, name: str, folder: Path, prompts: Sequence[Prompt], arms: Collection[str]) -> Line:
        if name == self.pair:
            return self._pair_line(folder, prompts, arms)
        return self._shape_line(next(weights for weights in self.shapes if weights.name == name), folder, arms)

    def _pair_line(self, folder: Path, prompts: Sequence[Prompt], arms: Collection[str]) -> Line:
        bench = Real(resolve(self.pair), folder)
        requests = bench.dataset(prompts, self.requests, self.tokens)
        made = bench.arms(self.rows, longest(requests), [arm for arm in ARMS if arm in arms])
        label = f"{bench.described}, {self.rows} rows"
        return dataset_line(label, made, real.SINGLE, requests, self.repeats, bench.expected)

    def _shape_line(self, weights: Weights, folder: Path, arms: Collection[str]) -> Line:
        bench = Synthetic(weights.shape, weights.bits, folder)
        requests = bench.dataset(self.requests, self.context, self.tokens)
        continuation = bench.continuation(requests, MIXED)
        together = [arm for arm in arms if arm not in synthetic.SINGLE]
        made = bench.arms(self.rows, requests, continuation, together)
        made |= bench.arms(1, requests, continuation, [arm for arm in arms if arm in synthetic.SINGLE])
        label = f"{weights.name}, {self.rows} rows"
        return dataset_line(label, made, synthetic.SINGLE, requests, self.repeats, bench.expected(continuation))


ON_CPU = WallTime(requests=24, rows=8, repeats=2)
"""Some ten minutes on two cores."""


def unfit(weights: Weights, limit: int | None) -> str | None:
    """Why a shape and its draft leave rows no room in so many bytes of a GPU's memory; None if they leave some. Without
    a limit, on a CPU, only time counts.
    """
    shape = SHAPES[weights.shape]
    modules: Any = shape.planned(weights.bits), shape.planned_draft()
    arrays: list[Any] = [array for module in modules for _, array in tree_flatten(module.parameters())]
    size = sum(array.nbytes for array in arrays)
    if limit is None:
        return f"its weights of {size / GIB:.1f} GiB would take a CPU hours" if size > MOST_ON_CPU else None
    if size <= SHARE * limit:
        return None
    return f"its weights of {size / GIB:.1f} GiB leave rows no room in the {limit / GIB:.1f} GiB here"
