"""A real pair on real prompts: its models, and the arms that answer all of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..depth.budget import Budget
from ..depth.calibration import measure_alone
from ..depth.round_cost import Cost
from ..drafting.load import load_pair
from ..engine import Engine
from ..models.folder import locate
from ..models.pairs import Pair
from ..request import Request, Sampling
from ..text import Prompt, Text
from .arms import Arm, Draftmill, MlxBatch, MlxStream
from .dataset import dataset_line
from .measure import Expected, alike, mixed_length, whole
from .peers.elsewhere import DFlashMlx, VllmMlx
from .peers.zlab import ZLab, twin
from .report import Line, Table
from .synthetic import longest

ARMS = ("mlx-stream", "mlx-batch", "depth-0", "adaptive", "dflash", "dflash-mlx", "vllm-mlx")
"""mlx-lm's two ways, this engine without its draft and as it comes, z-lab's engine, dflash-mlx, vllm-mlx."""

SINGLE = ("mlx-stream", "dflash", "dflash-mlx")
"""Arms that take one request at a time, whatever the number of rows."""


class Real:
    """A pair, loaded once for all arms but dflash-mlx.

    Raises:
        ModelError: one of its models cannot be found, read or served.
    """

    def __init__(self, pair: Pair, cache: Path):
        self.pair, self.cache = pair, cache
        parts = load_pair(pair, cache)
        self.tokenizer: Any = parts.loaded.tokenizer
        self.text = Text(parts.loaded.tokenizer)
        self.target = parts.target
        self.draft: Any = parts.draft
        self.model = twin(parts.loaded.model)  # for the others, whose layers stay mlx-lm's own
        self.recurrent = any(getattr(layer, "is_linear", False) for layer in self.target.layers)

    def requests(self, prompts: Sequence[Prompt], tokens: int) -> list[Request]:
        """Greedy requests for at most so many tokens; raises RequestError."""
        return [
            Request(f"r{n}", self.text.encode(prompt).tokens, Sampling(max_tokens=tokens, seed=n))
            for n, prompt in enumerate(prompts)
        ]

    def dataset(self, prompts: Sequence[Prompt], count: int, tokens: int, seed: int = 0) -> list[Request]:
        """So many greedy requests, each for another number of tokens up to `tokens`: of these prompts in mixed order,
        which begins again when all are taken. Raises RequestError.
        """
        draw = random.Random(seed)
        mixed = draw.sample(range(len(prompts)), len(prompts))[:count]
        encoded = [self.text.encode(prompts[place]).tokens for place in mixed]
        return [
            Request(f"r{n}", encoded[n % len(encoded)], Sampling(max_tokens=mixed_length(draw, tokens), seed=n))
            for n in range(count)
        ]

    @property
    def expected(self) -> Expected | None:
        """In float32 the texts of all arms are the same; in half precision near ties may fall either way."""
        return alike() if self.target.dtype == mx.float32 else None

    @property
    def described(self) -> str:
        return f"{self.pair.name} {self.dtype}"

    @property
    def dtype(self) -> str:
        return str(self.target.dtype).removeprefix("mlx.core.")

    def engine(self, rows: int, context: int, draft: Any) -> Engine:
        """This engine; with a draft it chooses depths by what rounds cost here."""
        engine = Engine(self.target, self.tokenizer, context, rows, None, draft)
        if engine.drafter:
            engine.spend(Budget(self.cost, engine.drafter.block))
        return engine

    @cached_property
    def cost(self) -> Cost:
        """What rounds and draft passes cost here."""
        return measure_alone(self.target, self.draft)

    def arms(self, rows: int, context: int, names: Sequence[str]) -> dict[str, Callable[[], Arm]]:
        """Arms by name, made when called, mlx-lm's first; without a draft those that need none."""

        def engine(draft: Any) -> Callable[[], Arm]:
            return lambda: Draftmill(lambda: self.engine(rows, context, draft))

        target = str(locate(self.pair.target, self.cache))
        made: dict[str, Callable[[], Arm]] = {
            "mlx-stream": lambda: MlxStream(self.model, self.tokenizer),
            "mlx-batch": lambda: MlxBatch(self.model, self.tokenizer, rows),
            "depth-0": engine(None),
        }
        if self.draft and self.pair.draft:
            draft = str(locate(self.pair.draft, self.cache))
            made["adaptive"] = engine(self.draft)
            made["dflash"] = lambda: ZLab(self.model, self.draft, self.tokenizer, self.recurrent)
            made["dflash-mlx"] = lambda: DFlashMlx(target, draft)
        made["vllm-mlx"] = lambda: VllmMlx(target, self.dtype, rows)
        return {name: arm for name, arm in made.items() if name in names}


def pair_table(
    bench: Real, requests: Sequence[Request], rows: Sequence[int], tokens: int, repeats: int, arms: Sequence[str]
) -> Table:
    """Whole runs of the prompts at so many rows; arms that take one at a time run beside the first only."""
    context = longest(requests)
    table = Table(
        f"{bench.described}, whole run of {len(requests)} prompts, {tokens} tokens at most, tokens/s", axis="rows"
    )
    for count in rows:
        names = [name for name in arms if count == rows[0] or name not in SINGLE]
        cells = whole(bench.arms(count, context, names), requests, repeats, bench.expected)
        table.lines.append(Line(str(count), cells, at=count))
    return table


def pair_dataset_table(
    bench: Real,
    prompts: Sequence[Prompt],
    count: int,
    rows: Sequence[int],
    tokens: int,
    repeats: int,
    arms: Sequence[str],
) -> Table:
    """Whole runs of so many requests of mixed lengths on these prompts."""
    requests = bench.dataset(prompts, count, tokens)
    lengths = f"{min(len(r.tokens) for r in requests)} to {max(len(r.tokens) for r in requests)} tokens"
    table = Table(
        f"{bench.described}, whole run of {count} requests on {min(count, len(prompts))} prompts of {lengths}, "
        f"up to {max(1, tokens // 16)} to {tokens} new ones",
        axis="rows",
        seconds=True,
    )
    for number in rows:
        made = bench.arms(number, longest(requests), [arm for arm in arms if number == rows[0] or arm not in SINGLE])
        table.lines.append(dataset_line(str(number), made, SINGLE, requests, repeats, bench.expected, number))
    return table
