"""The depths of one round: what drafted tokens are worth, what they cost, and which to verify. Knows no MLX."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, zip_longest
from operator import add, neg, sub, truediv

from .ladder import rungs
from .round_cost import Cost
from .round_times import RoundTimes, believed

PROMISING = 2
"""How many numbers of drafting rows are looked at closely."""

REUSE = 32
"""Rounds with the same number of tokens over which what the first of them takes is spread."""


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


@dataclass(frozen=True, slots=True)
class Prefix:
    """The drafted tokens of some rows in falling order of their chances, and what comes of each number of them.

    `order` has the rows, `rising` the chances of their tokens, negated, and `values` those of all rows, sorted. Rounds
    are filled by the first of them at `ends`, with so many `tokens` in so many `seconds`. `limit` is the most that a
    row of the draft's pass drafts.
    """

    order: Sequence[int]
    rising: list[list[float]]
    values: list[float]
    limit: int
    ends: list[int]
    tokens: list[float]
    seconds: list[float]
    rates: list[float]

    @property
    def rate(self) -> float:
        return max(self.rates)


class DepthChoice:
    """Rows and prices of one round.

    Args:
        cost: predicted seconds on this machine.
        block: tokens of a draft's block.
        rows: the decoding rows.
        chances: for each row, the probability that its first 1, 2, … drafted tokens survive; falling.
        prompt: tokens of prompts in the same round. What they take is no reason to draft more, as it must be spent in
            any case: it is left out of prices, but a round with many of them is past its knee.
        times: what rounds take beyond their cost.
        passing: which rows' drafts take a pass of the draft; by default all do.
    """

    def __init__(
        self,
        cost: Cost,
        block: int,
        rows: Sequence[Candidate],
        chances: Sequence[Sequence[float]],
        prompt: int = 0,
        times: RoundTimes | None = None,
        passing: Sequence[bool] | None = None,
    ):
        self.block, self.rows, self.chances, self.prompt = block, rows, chances, prompt
        self.passing = [True] * len(rows) if passing is None else passing
        self._rising = [list(map(neg, own)) for own in chances]  # negative, as bisection wants them rising
        self._times = times or RoundTimes()
        self._first = 0.0 if prompt else cost.first  # with prompts the number is a new one anyway
        count, context = len(rows), sum(row.context for row in rows)
        self._begin = begin = count + prompt
        start = begin if prompt else 0  # prompts make a number that is on no ladder: one begins there
        most = count * max(block - 1, *map(len, chances))
        tops = [start + size for size in rungs(begin - start + 1, begin - start + most)]
        self.ends = [top - begin for top in tops]  # how many drafted tokens fill a round
        curve, per_token = cost.rounds(tops[-1]), cost.round.per_pair * context / count  # of a row with average context
        fixed = curve[count] - curve[begin] + cost.round.per_row * count + cost.round.per_context * context
        fixed += per_token * count  # the anchors' pairs
        self._calibrated = {end: fixed + curve[begin + end] + per_token * end for end in (0, *self.ends)}
        self.rounds = self._rounds()
        per_draft = (cost.draft.per_context + cost.draft.per_pair * block) * context / count
        drafts = cost.drafts(count, block)
        self.drafts = [drafts[drafting] + per_draft * drafting for drafting in range(count + 1)]
        per_step = (cost.step.per_context + cost.step.per_pair) * context / count
        self.steps = [step + per_step * drafting for drafting, step in enumerate(cost.steps(count)[: count + 1])]

    def _rounds(self) -> list[float]:
        """Seconds of rounds with 0, 1, 2, … drafted tokens: up to a rung all take what that takes, and none takes less
        than a round without drafts.
        """
        count, share = len(self.rows), self._first / REUSE
        [excess] = self._times.excess(False, [count])
        rounds = [believed(self._calibrated[0], excess)]
        sizes = [count + end for end in self.ends]
        for size, end, excess in zip(sizes, self.ends, self._times.excess(self.block > 1, sizes), strict=True):
            seconds = believed(self._calibrated[end], excess) + share * self._times.first(size)
            rounds += [max(rounds[0], seconds)] * (1 + end - len(rounds))
        return rounds

    def seconds(self, tokens: int, passes: int, deepest: int = 0) -> float:
        """Of a round with so many drafted tokens, where the draft's pass has so many rows, the `deepest` of this depth.

        Where each token takes a pass, all these rows are taken to be in every one.
        """
        return self.rounds[tokens] + self._passes(passes, deepest)

    def calibrated(self, tokens: int, passes: int, deepest: int = 0) -> float:
        """As `seconds`, as far as the cost alone says."""
        end = self.ends[bisect_left(self.ends, tokens)] if tokens else 0
        return self._calibrated[end] + self._passes(passes, deepest)

    def _passes(self, rows: int, deepest: int) -> float:
        return self.drafts[rows] + self.steps[rows] * max(0, deepest - 1)

    @property
    def plain(self) -> Chosen:
        """No drafts."""
        return Chosen([0] * len(self.rows), len(self.rows), self.seconds(0, 0))

    def best(self) -> Chosen:
        """The depths that yield most tokens a second.

        Tokens are bought in falling order of their chances, and every prefix of that order is priced that fills a
        round: up to the next rung, tokens are free. Because each row of the draft's pass also pays for its whole block,
        this is done for a few numbers of the best rows; and where each token takes a pass, for each number of passes.
        """
        count, chosen = len(self.rows), self.plain
        worth = list(map(sum, self.chances))
        order = sorted((row for row in range(count) if worth[row]), key=worth.__getitem__, reverse=True)
        if not order:
            return chosen
        limits = range(1, self.block) if any(self.steps) else (self.block,)
        found = [self._prefix(order[:count], limit) for count in self._counts(order) for limit in limits]
        for prefix in sorted(found, key=lambda prefix: prefix.rate, reverse=True):
            if prefix.rate <= chosen.rate:
                break
            if (filled := self._filled(prefix)).rate > chosen.rate:
                chosen = filled
        return chosen

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

    def _prefix(self, order: Sequence[int], limit: int) -> Prefix:
        """Prices of every prefix of these rows' drafted tokens in falling order of their chances that fills a round.

        Rows of the draft's pass draft so many tokens at most, and where each takes a pass, as many passes are paid.
        """
        rising = [self._rising[row][:limit] if self.passing[row] else self._rising[row] for row in order]
        values = sorted(chain.from_iterable(rising))
        ends = self.ends[: 1 + bisect_left(self.ends, len(values))]
        gains = list(accumulate(values, sub, initial=float(len(self.rows))))
        firsts = sorted([(own[0], self.passing[row]) for row, own in zip(order, rising, strict=True)])
        starts = [bisect_left(values, first) for first, _ in firsts]  # a row drafts from where its first is bought
        passes = list(accumulate((passing for _, passing in firsts), initial=0))
        full = len(values)  # the last end may lie beyond what there is to draft
        reached = [end if end < full else full for end in ends]
        tokens = [gains[end] for end in reached]
        prices = [passes[bisect_left(starts, end)] for end in reached]
        seconds = [self.seconds(end, count, limit) for end, count in zip(ends, prices, strict=True)]
        return Prefix(order, rising, values, limit, ends, tokens, seconds, list(map(truediv, tokens, seconds)))

    def _filled(self, prefix: Prefix) -> Chosen:
        """The best of these prefixes as depths."""
        ends, rates = prefix.ends, prefix.rates
        place = rates.index(prefix.rate)
        chosen = self._chosen(prefix, place)
        if (total := sum(chosen.depths)) == ends[place]:
            return chosen
        # Rows are near their ends.
        if self._first and self._times.first(self._begin + total):  # and such a number is hardly reused
            chosen = replace(chosen, seconds=chosen.seconds + self._first)
        if fitting := rates[: bisect_right(ends, total)]:
            smaller = fitting.index(max(fitting))
            if smaller < place and rates[smaller] > chosen.rate:
                return self._chosen(prefix, smaller)
        return chosen

    def _chosen(self, prefix: Prefix, place: int) -> Chosen:
        """Depths of rows whose best tokens make this end together, as far as they can."""
        end, rising = prefix.ends[place], prefix.rising
        least = prefix.values[min(end, len(prefix.values)) - 1]
        found = [bisect_left(own, least) for own in rising]
        missing = end - sum(found)

        def take(bounds: Iterable[int]) -> None:
            nonlocal missing
            for number, bound in enumerate(bounds):
                if missing <= 0:
                    return
                more = min(missing, bound - found[number])
                if more > 0:
                    found[number] += more
                    missing -= more

        take(bisect_right(own, least) for own in rising)  # of tokens that are worth the same, the first
        take(self._room(row, prefix.limit) if depth else 0 for row, depth in zip(prefix.order, found[:], strict=True))
        depths = [0] * len(self.rows)
        for row, depth in zip(prefix.order, found, strict=True):
            depths[row] = depth
        return Chosen(depths, prefix.tokens[place], prefix.seconds[place])

    def _room(self, row: int, limit: int) -> int:
        """How many tokens a row may draft."""
        return min(limit, self.block - 1, self.rows[row].left - 1) if self.passing[row] else len(self.chances[row])
