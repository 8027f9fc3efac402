"""How fast this machine generates with the boxed pair, as a worker runs it, beside mlx-lm's `batch_generate`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..bench.arms import Arm, Draftmill, MlxBatch, synchronize
from ..bench.peers.zlab import twin
from ..engine import MAX_ROWS, Engine
from ..models import boxed
from ..models.pairs import PAIRS
from ..request import Request, Sampling
from .boxed_pair import have, requests_of
from .check import Wrong

WARM_PROMPT, WARM = 8, 4
"""Tokens of each row's prompt that are prefilled first, untimed, and tokens that are generated then."""


@dataclass(frozen=True)
class Speed:
    """The engine of a worker, and mlx-lm's own model over its weights."""

    engine: Engine
    model: Any
    tokenizer: Any

    @staticmethod
    def load(folder: Path) -> Speed:
        """Load them. What operations and rounds cost here is measured, unless a worker has done so before."""
        have(folder)
        engine = Engine.load(PAIRS[boxed.NAME], folder, MAX_ROWS)
        return Speed(engine, twin(engine.target.model), engine.text.tokenizer)

    def compare(self, rows: int, tokens: int) -> str:
        """The tokens per second of both, at so many rows of so many tokens each."""
        requests = requests_of(self.tokenizer, rows, Sampling(max_tokens=tokens))
        ours = rate(Draftmill(lambda: self.engine), requests)
        theirs = rate(MlxBatch(self.model, self.tokenizer, rows), requests)
        return f"{ours:,.0f} tokens/s, mlx-lm {theirs:,.0f}: {ours / theirs:.2f} times as fast"


def rate(arm: Arm, requests: Sequence[Request]) -> float:
    """Tokens per second of a whole run, prompts and all, after a few tokens of the same rows."""
    run = arm.runner().run
    run([replace(r, tokens=r.tokens[:WARM_PROMPT], sampling=replace(r.sampling, max_tokens=WARM)) for r in requests])
    synchronize()
    begin = time.perf_counter()
    texts = run(requests)
    seconds = time.perf_counter() - begin
    if not (count := sum(map(len, texts))):
        raise Wrong("nothing was generated")
    return count / seconds
