"""A shape to measure: its models, requests with random prompts, and the arms that serve them at a set acceptance."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..depth.budget import Budget
from ..depth.calibration import measure_alone
from ..depth.round_cost import Cost
from ..engine import Engine
from ..models.kernels_for import choose_kernels
from ..models.load_check import assure
from ..models.targets import adapt
from ..models.targets.transformer import Transformer
from ..request import Request, Sampling
from .arms import PREFILL, Arm, BenchError, Draftmill, MlxBatch, MlxStream, Numbers
from .measure import REFILL, WARM, Expected
from .peers import ZLab, twin
from .replay import Accept, Continuation, ReplaySource, by_request
from .shapes import SHAPES

ARMS = ("mlx-stream", "mlx-batch", "depth-0", "full-depth", "adaptive", "dflash")
"""mlx-lm's two ways, this engine without its draft, at all of the draft's depth and as it comes, z-lab's engine."""

SINGLE = ("mlx-stream", "dflash")
"""Arms that take one request at a time."""


DRAWS = 20
"""Prompts that are tried for a request."""

MARGIN = 0.1
"""By so much of its logit an expected token must lead."""


class Synthetic:
    """Models of a shape. On a CPU they are float32, as the engine's own are there.

    `cache` is where the engine remembers which operations win on this machine, and that they are right together.

    Raises:
        ModelError: logits are not mlx-lm's on this machine.
    """

    def __init__(self, shape: str, bits: int, cache: Path):
        self.shape = SHAPES[shape]
        self.bits = bits
        dtype = mx.float32 if mx.default_device() == mx.cpu else mx.bfloat16
        model = self.shape.build(bits, dtype)
        self.draft = self.shape.build_draft(dtype)
        self.target = adapt(model)
        self.model = twin(model)  # for the others, whose layers stay mlx-lm's own
        choose_kernels(self.target, self.draft, cache)
        assure(self.target, f"{shape} of {bits} bits", cache)
        wrapped: Any = Numbers()
        self.tokenizer = TokenizerWrapper(wrapped)

    @property
    def block(self) -> int:
        return self.draft.block

    def rows(self, count: int, context: int, tokens: int, accept: Accept, repeats: int, seed: int = 0) -> list[Request]:
        """Requests to be timed for `tokens` tokens each, with contexts of mixed length around `context`."""
        levels = by_request(accept, count)
        fastest = max(levels)
        # Timing ends when they have their tokens together: the fastest get most of them if the others do not draft.
        share = fastest * count / sum(level if level == fastest else 1 for level in levels)
        draw = random.Random(seed)
        lengths = [draw.randint(context - context // 8, context + context // 8) for _ in range(count)]
        rounds = (1 + repeats) * REFILL + 1 + sum(lengths) // PREFILL  # that are not timed, but generate
        most = int(1.25 * (share * (WARM + tokens) + rounds * fastest)) + 3 * self.block
        return [self.request(draw, place, length, most) for place, length in enumerate(lengths)]

    def dataset(self, count: int, context: int, tokens: int, seed: int = 0) -> list[Request]:
        """Requests of mixed length: an eighth to twice of `context` and of `tokens`."""
        draw = random.Random(seed)
        return [
            self.request(draw, n, draw.randint(context // 8, 2 * context), draw.randint(tokens // 8, 2 * tokens))
            for n in range(count)
        ]

    def request(self, draw: random.Random, seed: int, length: int, most: int) -> Request:
        """A request for `most` tokens, with a random prompt on which mlx-lm itself generates what is expected.

        Raises:
            BenchError: there are hardly any such prompts.
        """
        for _ in range(DRAWS):
            prompt = tuple(draw.randrange(self.shape.vocabulary) for _ in range(length))
            if self.follows(prompt, most):
                return Request(f"r{seed}", prompt, Sampling(max_tokens=most, seed=seed))
        raise BenchError(f"{self.shape.name}: mlx-lm generates other tokens than expected on {DRAWS} prompts")

    def follows(self, prompt: Sequence[int], count: int) -> bool:
        """Whether mlx-lm prefers each of the `count` expected tokens to all others, by more than rounding excuses."""
        expected = [(prompt[-1] + (i + 1) * self.shape.step) % self.shape.vocabulary for i in range(count)]
        logits = self.model(mx.array([[*prompt, *expected[:-1]]]))[0, -count:].astype(mx.float32)
        right = mx.array(expected)[:, None]
        wanted = mx.take_along_axis(logits, right, axis=-1)
        others = mx.where(mx.arange(logits.shape[-1]) == right, -mx.inf, logits).max(axis=-1, keepdims=True)
        return bool((wanted - others > MARGIN * mx.abs(wanted)).all())

    def continuation(self, requests: Sequence[Request], accept: Accept) -> Continuation:
        starts = [len(request.tokens) for request in requests]
        return Continuation.make(
            self.shape.step, self.shape.vocabulary, self.block, accept, starts, longest(requests) + self.block
        )

    def expected(self, continuation: Continuation) -> Expected:
        return lambda request, count: continuation.after(request.tokens[-1], count)

    def engine(
        self,
        rows: int,
        context: int,
        continuation: Continuation | None,
        depth: int | None = None,
        target: Transformer | None = None,
    ) -> Engine:
        """This engine; without a continuation, without its draft."""
        draft, target = self.draft if continuation else None, target or self.target
        engine = Engine(target, self.tokenizer, context, rows, None, draft, depth)
        if continuation:
            assert engine.drafter
            engine.drafter = ReplaySource(engine.drafter, continuation)
            if depth is None:
                engine.spend(Budget(self.cost, self.block))
        return engine

    @cached_property
    def cost(self) -> Cost:
        """What rounds and draft passes cost here."""
        return measure_alone(self.target, self.draft)

    def arms(
        self, rows: int, requests: Sequence[Request], continuation: Continuation, names: Sequence[str] = ARMS
    ) -> dict[str, Callable[[], Arm]]:
        """Arms by name, made when called. With several rows those that take one at a time are left out."""
        context = longest(requests)
        full = self.block - 1
        made: dict[str, Callable[[], Arm]] = {
            "mlx-stream": lambda: MlxStream(self.model, self.tokenizer),
            "mlx-batch": lambda: MlxBatch(self.model, self.tokenizer, rows),
            "depth-0": lambda: Draftmill(lambda: self.engine(rows, context, None)),
            "full-depth": lambda: Draftmill(lambda: self.engine(rows, context, continuation, full)),
            "adaptive": lambda: Draftmill(lambda: self.engine(rows, context, continuation)),
            "dflash": lambda: ZLab(self.model, self.draft, self.tokenizer, self.shape.recurrent, continuation),
        }
        return {name: made[name] for name in names if name in made and (rows == 1 or name not in SINGLE)}


def longest(requests: Sequence[Request]) -> int:
    """Tokens of the longest prompt and completion."""
    return max(len(request.tokens) + request.sampling.max_tokens for request in requests)
