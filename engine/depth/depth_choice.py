"""The depths of one round: what drafted tokens are worth, what they cost, and which to verify. Knows no MLX."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, zip_longest
from operator import add, neg, sub, truediv

from .round_cost import Cost

PROMISING = 2
"""How many numbers of drafting rows are looked at closely."""


@dataclass(frozen=True)
class Candidate:
    """A decoding row: how many tokens it may still emit, at most, how many it has behind it, how many of its last ones
    stood in its text before, as far as that is known, and whether the draft may write for it.
    """

    key: str
    left: int
    context: int
    match: int = 0
    writing: bool = True


@dataclass(frozen=True)
class Chosen:
    """Depths of the rows, the tokens that they are expected to emit in all, and the seconds that takes."""

    depths: list[int]
    tokens: float
    seconds: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


class DepthChoice:
    """Rows and prices of one round.

    Args:
        cost: predicted seconds on this machine.
        block: tokens of a draft's block.
        rows: the decoding rows.
        chances: for each row, the probability that its first 1, 2, … drafted tokens survive; falling.
        prompt: tokens of prompts in the same round. What they take is no reason to draft more, as it must be spent in
            any case: it is left out of prices, but a round with many of them is past its knee.
        extra: seconds by which a round of 0, 1, 2, … packed tokens is dearer, as far as any is.
        timed: likewise, of 0, 1, 2, … drafted tokens.
        passing: which rows' drafts take a pass of the draft; by default all do.
    """

    def __init__(
        self,
        cost: Cost,
        block: int,
        rows: Sequence[Candidate],
        chances: Sequence[Sequence[float]],
        prompt: int = 0,
        extra: Sequence[float] = (),
        timed: Sequence[float] = (),
        passing: Sequence[bool] | None = None,
    ):
        self.block, self.rows, self.chances = block, rows, chances
        self.passing = [True] * len(rows) if passing is None else passing
        self._rising = [list(map(neg, own)) for own in chances]  # negative, as bisection wants them rising
        count, context = len(rows), sum(row.context for row in rows)
        width = max(block, 1 + max(map(len, chances)))
        begin, reach = count + prompt, 1 + count * max(map(len, chances))
        self._curve, self._extra, self._timed = cost.rounds(count * width + prompt), extra, timed
        self._begin, self._per_token = begin, cost.round.per_pair * context / count  # of a row with average context
        fixed = self._curve[count] - self._curve[begin] + cost.round.per_row * count
        fixed += (cost.round.per_context + cost.round.per_pair) * context  # the anchors' pairs
        self.rounds = self._rounds(0, reach)  # as far as tokens may be worth something
        per_draft = (cost.draft.per_context + cost.draft.per_pair * block) * context / count
        drafts = cost.drafts(count, block)
        self.drafts = [fixed + drafts[drafting] + per_draft * drafting for drafting in range(count + 1)]
        per_step = (cost.step.per_context + cost.step.per_pair) * context / count
        self.steps = [step + per_step * drafting for drafting, step in enumerate(cost.steps(count)[: count + 1])]

    def _rounds(self, first: int, end: int) -> list[float]:
        """What depends on the number of drafted tokens, from `first` of them on."""
        packed = slice(self._begin + first, self._begin + end)
        rounds = [seconds + self._per_token * tokens for tokens, seconds in enumerate(self._curve[packed], first)]
        for more in (self._extra[packed], self._timed[first:end]):
            if more:
                rounds = list(map(add, rounds, more))
        return rounds

    def seconds(self, tokens: int, passes: int, deepest: int = 0) -> float:
        """Of a round with so many drafted tokens, where the draft's pass has so many rows, the `deepest` of this depth.

        Where each token takes a pass, all these rows are taken to be in every one.
        """
        rounds = self.rounds[tokens] if tokens < len(self.rounds) else self._rounds(tokens, tokens + 1)[0]
        return rounds + self.drafts[passes] + self.steps[passes] * max(0, deepest - 1)

    @property
    def plain(self) -> Chosen:
        """No drafts."""
        return Chosen([0] * len(self.rows), len(self.rows), self.seconds(0, 0))

    def best(self) -> Chosen:
        """The depths that yield most tokens a second.

        Tokens are bought in falling order of their chances, and every prefix of that order is priced, because a
        round's price has a knee and steps. Because each row of the draft's pass also pays for its whole block, this
        is done for a few numbers of the best rows; and where each token takes a pass, for each number of passes.
        """
        count, chosen = len(self.rows), self.plain
        worth = list(map(sum, self.chances))
        order = sorted((row for row in range(count) if worth[row]), key=worth.__getitem__, reverse=True)
        if not order:
            return chosen
        limits = range(1, self.block) if any(self.steps) else (self.block,)
        found = (self._prefix(order[:drafting], limit) for drafting in self._counts(order) for limit in limits)
        return max((chosen, *found), key=lambda depths: depths.rate)

    def _counts(self, order: Sequence[int]) -> set[int]:
        """The most promising numbers of rows from the head of the order, as if their depths were the same."""
        highest: dict[int, float] = {}
        gains = [float(len(self.rows))] * len(order)  # with the first 1, 2, … rows drafting
        passes = list(accumulate(self.passing[row] for row in order))
        drafts, steps = ([prices[count] for count in passes] for prices in (self.drafts, self.steps))
        for depth, column in enumerate(zip_longest(*[self.chances[row] for row in order], fillvalue=0.0), 1):
            gains = list(map(add, gains, accumulate(column)))
            rates = list(map(truediv, gains, map(add, self.rounds[depth::depth], drafts)))
            if depth < self.block - 1:  # deeper drafts are copied
                drafts = list(map(add, drafts, steps))
            most = max(rates)
            drafting = rates.index(most) + 1
            highest[drafting] = max(most, highest.get(drafting, 0.0))
        return set(sorted(highest, key=highest.__getitem__, reverse=True)[:PROMISING])

    def _prefix(self, order: Sequence[int], limit: int) -> Chosen:
        """The best prefix of these rows' drafted tokens in falling order of their chances; at least one token.

        Rows of the draft's pass draft so many tokens at most, and where each takes a pass, as many passes are paid.
        """
        rising = {row: self._rising[row][:limit] if self.passing[row] else self._rising[row] for row in order}
        values = sorted(chain.from_iterable(rising.values()))
        gains = list(accumulate(values, sub, initial=float(len(self.rows))))
        firsts = sorted([(self._rising[row][0], self.passing[row]) for row in order])
        starts = [bisect_left(values, first) for first, _ in firsts]
        starts.append(len(values))
        drafts: list[float] = []  # of each prefix: a row drafts from where its first token is bought
        passes = 0
        for place, (_, passing) in enumerate(firsts):
            passes += passing
            price = self.drafts[passes] + self.steps[passes] * (limit - 1)
            drafts += [price] * (starts[place + 1] - starts[place])
        prices = list(map(add, self.rounds[1:], drafts))
        rates = list(map(truediv, gains[1:], prices))
        bought = rates.index(max(rates)) + 1
        least = values[bought - 1]
        depths = [0] * len(self.rows)
        for row in order:
            depths[row] = bisect_right(rising[row], least)
        surplus = sum(depths) - bought
        for row in reversed(order):  # of tokens that are worth the same, the last were not bought
            while surplus and depths[row] and rising[row][depths[row] - 1] == least:
                depths[row] -= 1
                surplus -= 1
        return Chosen(depths, gains[bought], prices[bought - 1])
