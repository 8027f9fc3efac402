"""The row budget: how many drafted tokens of each row to verify, so that rounds yield most tokens per second.

Packed tokens are the currency. A row's anchor is worth one token, its i-th drafted token the probability that it
survives, and a round of so many tokens has its price. Knows no MLX.
"""

from __future__ import annotations

from collections.abc import Sequence

from .acceptance import Survival
from .depth_choice import Candidate, Choice, Market
from .exploration import Probing
from .round_cost import Cost
from .round_timing import ENOUGH, MEMORY, Forecast, Surcharges

REUSE = 32
"""Rounds with the same number of tokens over which what the first of them takes is spread."""

PLAUSIBLE = 2.0
"""How many times as fast as priced rounds without drafts might be, if none was timed for long."""

TRIAL = ENOUGH + 1
"""Rounds without drafts in a row, to time them: enough, and one more, whose neighbour drafts."""


class Budget:
    """Chooses depths round by round and learns from what was accepted, in whatever later round that is known.

    Args:
        cost: predicted seconds on this machine, with those of the draft.
        block: tokens of a draft's block, its anchor included; at least 2.
    """

    def __init__(self, cost: Cost, block: int):
        self.cost, self.block = cost, block
        self.survival = Survival(block - 1)
        self.surcharges = Surcharges()
        self.forecast: Forecast | None = None
        """Of the round whose depths were chosen last; None if it has prompts, or no row that decodes."""
        self._probing = Probing(self.survival)
        self._extra: list[float] = []  # by packed tokens: a share of what a first round takes, 0 after it
        self._trials: dict[int, int] = {}  # by rows, the round in which one began

    def depths(self, rows: Sequence[Candidate], prompt: int = 0) -> list[int]:
        """For each row the drafted tokens to verify in the next round, which also has `prompt` tokens of prompts."""
        self.forecast = None
        if not rows:
            return []
        self.survival.next_round()
        self.surcharges.next_round()
        market = self._market(rows, prompt)
        choice = market.best()
        if not prompt and self._tries_without(market, choice):
            choice, depths = market.plain, market.plain.depths
        else:
            depths = self._probing.add(market, choice)
        if not prompt:
            self.forecast = self._forecast(market, choice, depths)
        if self.cost.first:
            self._extra[len(rows) + prompt + sum(depths)] = 0.0
        return depths

    def _market(self, rows: Sequence[Candidate], prompt: int) -> Market:
        chances = [self.survival.chances(row.key, min(row.left, self.block) - 1) for row in rows]
        most = len(rows) * self.block
        if self.cost.first:
            self._extra += [self.cost.first / REUSE] * (most + prompt + 1 - len(self._extra))
        surcharges = self.surcharges.listed(len(rows), most)
        return Market(self.cost, self.block, rows, chances, prompt, self._extra, surcharges)

    def _forecast(self, market: Market, choice: Choice, depths: Sequence[int]) -> Forecast:
        """How a round without prompts is priced in which rows verify so many drafted tokens."""
        drafted, tokens = sum(depths), len(depths) + sum(depths)
        share = self._extra[tokens] if self.cost.first else 0.0
        seconds = market.seconds(drafted, sum(depth > 0 for depth in depths)) - share
        seconds -= self.surcharges.of(drafted > 0, tokens)
        return Forecast(tokens, drafted > 0, depths != choice.depths, seconds, market.seconds(0, 0), REUSE * share)

    def _tries_without(self, market: Market, choice: Choice) -> bool:
        """Whether to leave drafts out, because what rounds take without them was not timed for long and may matter."""
        rows = len(market.rows)
        if not any(choice.depths) or self.surcharges.known(False, rows):
            return False
        size, now = rows.bit_length(), self.surcharges.round
        if size in self._trials and (since := now - self._trials[size]) <= MEMORY:
            return since < TRIAL
        if PLAUSIBLE * market.plain.rate > choice.rate:
            self._trials[size] = now
            return True
        return False

    def ran(self, read: Forecast | None, launched: Forecast | None, seconds: float) -> None:
        """So long after the round before it the round `read` was there, and `launched` had been handed over.

        Whichever of the two took the time: where the device is slower it was the one, where the host is, the other.
        """
        if not read or not launched:
            return
        if read.probe or launched.probe:
            self._probing.took(max(0.0, seconds / self.surcharges.pace - launched.plain))
        elif read.drafting == launched.drafting:
            self.surcharges.learn(read, seconds)

    def observe(self, key: str, depth: int, accepted: int) -> None:
        """A round verified `depth` drafted tokens of a row and accepted the first `accepted` of them."""
        if depth:
            self.survival.observe(key, depth, accepted)
            self._probing.observe(key, accepted)

    def forget(self, key: str) -> None:
        """The row is done."""
        self.survival.forget(key)
        self._probing.forget(key)
