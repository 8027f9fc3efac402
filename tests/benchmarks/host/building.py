"""What it costs the host to build the graph of a target's forward, in stock operations and in kernels.

`python -m tests.benchmarks.host.building` in the root of the repository. A model with as many layers as Qwen3-4B, and
8 rows of 2 tokens. Kernels are launched up to the call of MLX, which has no GPU to make them for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from statistics import median
from typing import Any

import click
import mlx.core as mx

from draftmill.engine.bench.shapes import SHAPES
from draftmill.engine.models.targets import adapt
from draftmill.kernels.gpu.launch import variant
from draftmill.kernels.operations import Operations
from draftmill.kernels.packing import Packing, Span
from draftmill.kernels.race.keys import KERNEL, Key

LAYERS, ROWS, TOKENS, LENGTH = 36, 8, 2, 12
SIZES = dict(num_hidden_layers=LAYERS, hidden_size=128, head_dim=64, intermediate_size=128)
"""Every product can be quantised, and every kernel is made for such heads."""


class Kernels(dict[Key, str]):
    """Winners of races that kernels have always won."""

    def get(self, key: Key, default: Any = None) -> Any:
        return KERNEL


@click.command()
@click.option("--builds", type=click.IntRange(1), default=40, show_default=True)
def main(builds: int) -> None:
    """Time how long the graph of a forward takes to build."""
    click.echo("| bits | stock operations, ms | kernels, ms |\n|---|---|---|")
    for bits in (16, 4):
        stock, kernels = (median(seconds(bits, operations, builds)) for operations in FORMS)
        click.echo(f"| {bits} | {1000 * stock:.2f} | {1000 * kernels:.2f} |")


def launch(kernel: Any, inputs: Any, constants: Any, groups: Any, threads: Any, outputs: Sequence[Any]) -> Any:
    """A launch without MLX: it only finds out which variant of the kernel it is."""
    compiled(*variant(kernel, inputs, constants, outputs))
    return [mx.zeros(shape, dtype) for shape, dtype in outputs]


@cache
def compiled(*variant: Any) -> Any:
    """Stands for the kernel that MLX makes of a variant."""
    return variant


FORMS = Operations(), Operations(Kernels(), launch, in_place=True)


def seconds(bits: int, operations: Operations, builds: int) -> list[float]:
    """Processor seconds of this thread for each build, without the first ones."""
    tiny = SHAPES["tiny-qwen3"]
    target = adapt(replace(tiny, config=tiny.config | SIZES).build(bits, mx.float16))
    target.operations = operations
    state = target.make_state(ROWS)
    tokens, positions = mx.zeros(ROWS * TOKENS, mx.int32), mx.full((ROWS * TOKENS,), LENGTH - 1, mx.int32)
    spans = [Span(row * TOKENS, TOKENS, [row], LENGTH, row=row) for row in range(ROWS)]
    spent: list[float] = []
    for _ in range(5 + builds):
        state.renew()
        begin = time.thread_time()
        target.forward(tokens, Packing.of(spans, positions), state)
        spent.append(time.thread_time() - begin)
    return spent[5:]


if __name__ == "__main__":
    main()
