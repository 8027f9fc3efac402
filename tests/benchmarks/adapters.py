"""What LoRA adapters cost: rows that name one of eight beside rows that name none, random weights in a shape.

    python -m tests.benchmarks.adapters [--shape qwen3-4b] [--rows 32] [--accept 4] [--turns 5]

The adapters have mlx-lm's defaults: rank 8, over all linear layers of the last sixteen layers. B is 0, so that the
text is the shape's.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from draftmill.engine.bench.arms import Arm, Draftmill, EngineSession
from draftmill.engine.bench.measure import steady
from draftmill.engine.bench.replay import Continuation, ReplaySource
from draftmill.engine.bench.report import Line, Table
from draftmill.engine.bench.synthetic import Synthetic, longest
from draftmill.engine.engine import Engine
from draftmill.engine.models.kernels_for import choose_kernels
from draftmill.engine.models.linear import sizes
from draftmill.engine.models.lora import LoRA, lay
from draftmill.engine.request import Adapters, Request
from tests.benchmarks.drafts import say

ADAPTERS, RANK, LAYERS = 8, 8, 16
NAMES = [f"adapter-{n}" for n in range(ADAPTERS)]


class Mixed(Draftmill):
    """The engine, whose rows name the adapters in turn."""

    def open(self, requests: Sequence[Request]) -> EngineSession:
        return super().open([replace(each, adapter=NAMES[n % ADAPTERS]) for n, each in enumerate(requests)])


def random_adapters(bench: Synthetic) -> None:
    """Lay random adapters over the shape's target."""
    model: Any = bench.target.model
    first = len(bench.target.layers) - LAYERS
    paths = {id(module): path for path, module in model.named_modules()}
    modules = {paths[id(module)]: module for _, _, own in bench.target.linears() for module in own}
    loras = []
    for name in NAMES:
        weights = {}
        for path, module in modules.items():
            inputs, outputs = sizes(module)
            if int(path.split("layers.")[1].split(".")[0]) >= first:
                weights[path] = mx.random.normal((inputs, RANK)) * inputs**-0.5, mx.zeros((RANK, outputs))
        loras.append(LoRA(Path(name), 20.0, weights))
    lay(loras, bench.target, model)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="qwen3-4b")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--accept", type=float, default=4)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Synthetic(given.shape, 16, Path(folder))
        random_adapters(bench)
        choose_kernels(bench.target, bench.draft, Path(folder))  # once more, now that there are adapters
    served = Adapters({name: Path(name) for name in NAMES})
    tokens = int(24 * max(given.accept, 4))
    requests = bench.rows(given.rows, 512, tokens, (given.accept,), given.turns)
    continuation, context = bench.continuation(requests, (given.accept,)), longest(requests)

    def engine(continuation: Continuation | None) -> Engine:
        draft = bench.draft if continuation else None
        made = Engine(bench.target, bench.tokenizer, context, given.rows, None, draft, None, served)
        if continuation and made.drafter:
            made.drafter = ReplaySource(made.drafter, continuation)
        return made

    found = Table(f"{given.shape}, {given.rows} rows, {given.accept:g} tokens per round, tokens/s", axis="drafts")
    for label, used in (("none", None), ("full depth", continuation)):
        arms: dict[str, Callable[[], Arm]] = {
            "no adapter": lambda used=used: Draftmill(lambda: engine(used)),
            f"{ADAPTERS} adapters": lambda used=used: Mixed(lambda: engine(used)),
        }
        found.lines.append(Line(label, steady(arms, requests, tokens, given.turns, bench.expected(continuation))))
    say(found)


if __name__ == "__main__":
    main()
