"""Acceptance at will: drafts that cost what they cost and then say what they are told, right or wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import mlx.core as mx

from ..drafting.drafter import DraftRow
from ..drafting.kinds import ModelSource
from ..request import Origin

Accept = tuple[float, ...]
"""Tokens per round at full depth: of each request in turn, starting again when all are taken."""

MIXED: Accept = (1, 2, 4, 8)

STRATA = 8
"""Rounds of a row, one after another, whose accepted counts are spread evenly over their distribution."""


def by_request(accept: Accept, count: int) -> list[float]:
    """Tokens per round of so many requests."""
    return [accept[place % len(accept)] for place in range(count)]


def described(accept: Accept) -> str:
    """Such as "4 tokens per round"."""
    levels = [f"{level:g}" for level in accept]
    if len(levels) == 1:
        return f"{levels[0]} tokens per round"
    return f"{', '.join(levels[:-1])} and {levels[-1]} tokens per round by request in turn"


def survival(tokens_per_round: float, block: int) -> float:
    """The chance s that a drafted token is right at which full depth yields so many tokens per round.

    Solves 1 + s + s^2 + … + s^(block - 1) = tokens_per_round: the j-th drafted token counts if all before it do.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(middle**i for i in range(block)) < tokens_per_round:
            low = middle
        else:
            high = middle
    return low if tokens_per_round < block else 1.0


def pattern(s: float, block: int, length: int, seed: int) -> list[bool]:
    """Which of a row's next tokens a draft gets right, each with the chance `s`.

    Runs of right tokens end with a wrong one. Of every few runs one falls into each stratum of their distribution, so
    that a short measurement already sees the tokens per round that were asked for.
    """
    draw = random.Random(seed)
    right: list[bool] = []
    while len(right) < length:
        for stratum in draw.sample(range(STRATA), STRATA):
            left = (stratum + draw.random()) / STRATA  # of all runs, the share that is longer
            longest = block - 1
            run = 0 if s == 0 else longest if s == 1 or left <= 0 else min(longest, int(log(left) / log(s)))
            # After a whole block comes the target's own token, which no draft has to get right.
            right += [True] * run + [run == longest and draw.random() < s]
    return right[:length]


@dataclass(frozen=True)
class Continuation:
    """What targets of `shapes` generate, and where drafts are right about it.

    Attributes:
        step: from one token to the next.
        vocabulary: tokens there are.
        right: [streams, length] of bool; the row of a request is its seed, the column a token's position.
    """

    step: int
    vocabulary: int
    right: mx.array

    @classmethod
    def make(
        cls, step: int, vocabulary: int, block: int, accept: Accept, starts: Sequence[int], length: int
    ) -> Continuation:
        """For requests whose prompts have so many tokens each, up to `length` tokens of prompt and completion."""
        chances = [survival(level, block) for level in by_request(accept, len(starts))]
        # The target itself adds the token after the prompt: drafts begin one further on.
        rows = [
            [False] * min(start + 1, length) + pattern(s, block, max(0, length - start - 1), seed)
            for seed, (start, s) in enumerate(zip(starts, chances, strict=True))
        ]
        right = mx.array(rows)
        mx.eval(right)
        return cls(step, vocabulary, right)

    def after(self, token: int, count: int) -> list[int]:
        """The `count` tokens that the target generates after `token`."""
        return [(token + (i + 1) * self.step) % self.vocabulary for i in range(count)]

    def draft(self, anchors: mx.array, ahead: mx.array, streams: mx.array, positions: mx.array) -> mx.array:
        """Drafted tokens [F], each `ahead` [F] of its anchor [F] and at an absolute position [F] in its stream [F]."""
        truth = anchors + ahead * self.step
        places = mx.minimum(positions, self.right.shape[1] - 1)
        wrong = mx.where(self.right[streams, places], 0, self.vocabulary // 2)
        return ((truth + wrong) % self.vocabulary).astype(mx.int32)


class ReplaySource:
    """A draft bound to its target that runs at its full price, then drafts from a continuation instead of what it said.

    A request's seed says which stream of the continuation is its own.
    """

    def __init__(self, source: ModelSource, continuation: Continuation):
        self.source, self.continuation = source, continuation
        self.draft, self.target, self.pool = source.draft, source.target, source.pool
        self.block, self.about, self.tapped = source.block, source.about, source.tapped
        self.origin: Origin = source.origin
        self.extend, self.renew = source.extend, source.renew

    def draft_blocks(self, rows: Sequence[DraftRow], anchors: mx.array, cursors: mx.array) -> mx.array:
        drafted = self.source.draft_blocks(rows, anchors, cursors)
        slots = mx.array([row.slot for row in rows for _ in range(row.depth)])
        streams = mx.array([row.request.sampling.seed for row in rows for _ in range(row.depth)])
        ahead = mx.array([1 + j for row in rows for j in range(row.depth)])
        tokens = self.continuation.draft(anchors[slots], ahead, streams, cursors[slots] + ahead)
        return mx.depends([tokens], [drafted])[0]
