"""What each kind of draft costs beside what it brings: random weights in a published shape, acceptance replayed.

    python -m tests.benchmarks.drafts [--shape qwen3.5-4b] [--rows 1 8 32] [--accept 2 4] [--turns 5]

The drafts have the sizes of the shape's DFlash draft: DFlash 2 with the convolutions and the selector that are
published, DSpark with its vanilla Markov head. All draft as deep as they can. Copies of own text are always right here,
because the shape repeats one token.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from copy import copy
from itertools import chain
from pathlib import Path
from typing import Any

import mlx.core as mx

from draftmill.engine.bench.arms import Arm, Draftmill
from draftmill.engine.bench.measure import steady
from draftmill.engine.bench.report import Line, Table
from draftmill.engine.bench.shapes import Shape, evaluate
from draftmill.engine.bench.synthetic import Synthetic, longest
from draftmill.engine.depth.budget import Budget
from draftmill.engine.depth.calibration import PAGES, measure
from draftmill.engine.depth.round_cost import NOTHING, Cost
from draftmill.engine.drafting.dflash2 import DFlash2Config, DFlash2Draft
from draftmill.engine.drafting.dspark import DSparkConfig, DSparkDraft
from draftmill.engine.drafting.kinds import Draft
from draftmill.engine.drafting.mtp.head import MTP, MTPHead
from draftmill.engine.drafting.suffix import MOST
from draftmill.engine.engine import Engine
from draftmill.engine.models.kernels_for import choose_kernels
from draftmill.engine.models.targets.transformer import Transformer
from draftmill.engine.request import Request


def dflash2(shape: Shape, target: Transformer) -> DFlash2Draft:
    published = dict(block_size=8, conv_kernel_size=2, conv_group_size=16, selector_rank=256, selector_top_k=16)
    return DFlash2Draft(DFlash2Config.from_dict(shape.draft_config() | published))


def dspark(shape: Shape, target: Transformer) -> DSparkDraft:
    return DSparkDraft(DSparkConfig.from_dict(shape.draft_config() | dict(block_size=8, markov_rank=256)))


def mtp(shape: Shape, target: Transformer) -> MTP:
    head: Any = MTPHead(target.model.args)
    head.set_dtype(target.dtype)
    evaluate(head)
    return MTP(head, target)


KINDS: dict[str, Callable[[Shape, Transformer], Draft]] = {"dflash2": dflash2, "dspark": dspark, "mtp": mtp}
"""Beside the shape's own draft, a DFlash draft."""


class Together:
    """Several drafts in one race of kernels, since all of them run over one target."""

    def __init__(self, drafts: list[Draft]):
        self.drafts = drafts

    def join(self) -> None:
        for draft in self.drafts:
            draft.join()

    @property
    def shapes(self) -> list[Any]:
        return list(dict.fromkeys(chain.from_iterable(draft.shapes for draft in self.drafts)))


def with_drafts(bench: Synthetic, cache: Path) -> dict[str, Synthetic]:
    """The same target with each kind of draft."""
    found = {"dflash": bench}
    for number, (name, make) in enumerate(KINDS.items()):
        mx.random.seed(number)
        found[name] = copy(bench)
        found[name].draft = draft = make(bench.shape, bench.target)  # pyright: ignore[reportAttributeAccessIssue]
        if not isinstance(draft, MTP):
            draft.set_dtype(bench.target.dtype)
            evaluate(draft)
            draft.eval()
    choose_kernels(bench.target, Together([own.draft for own in found.values()]), cache)
    return found


def copying(bench: Synthetic, cost: Cost, rows: int, context: int) -> Engine:
    engine = Engine(bench.target, bench.tokenizer, context, rows, copying=True)
    engine.spend(Budget(cost, 1, True))
    return engine


def table(kinds: dict[str, Synthetic], copies: Cost, rows: int, accepts: list[float], turns: int) -> Table:
    """Tokens a second, at so many tokens per round where a draft's block has room for them."""
    bench = kinds["dflash"]
    out = Table(f"{bench.shape.name}, {rows} rows, tokens/s", axis="tokens per round")
    for accept in accepts:
        tokens = int(24 * max(accept, 4))
        requests = bench.rows(rows, 512, tokens, (accept,), turns)
        context = longest(requests)
        arms: dict[str, Callable[[], Arm]] = {
            "depth-0": lambda context=context: Draftmill(lambda: bench.engine(rows, context, None)),
            "lookup": lambda context=context: Draftmill(lambda: copying(bench, copies, rows, context)),
        }
        for name, own in kinds.items():
            if accept <= own.block:
                arms[name] = arm(own, rows, requests, accept)
        cells = steady(arms, requests, tokens, turns, bench.expected(bench.continuation(requests, (accept,))))
        out.lines.append(Line(f"{accept:g}", cells))
        took = {n: 1000 * rows * (c.tokens_per_round or 1) / c.rate for n, c in cells.items() if c.samples}
        out.facts.append({"ms a round, at": accept, **took})
    return out


def arm(bench: Synthetic, rows: int, requests: list[Request], accept: float) -> Callable[[], Arm]:
    continuation, full = bench.continuation(requests, (accept,)), bench.block - 1
    return lambda: Draftmill(lambda: bench.engine(rows, longest(requests), continuation, full))


def say(found: Table) -> None:
    """Prints a table."""
    print(found.title)
    for grid in found.grids:
        print("\n".join(f"| {' | '.join(line)} |" for line in grid))
    print("\n".join(found.failures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="qwen3.5-4b")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--accept", type=float, nargs="*", default=[2, 4])
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Synthetic(given.shape, 16, Path(folder))
        kinds = with_drafts(bench, Path(folder))
    copies = Cost(measure(bench.target, None, PAGES, max(given.rows), MOST + 1).round, NOTHING)
    for rows in given.rows:
        say(table(kinds, copies, rows, given.accept, given.turns))


if __name__ == "__main__":
    main()
