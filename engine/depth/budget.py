"""The row budget: how many drafted tokens of each row to verify, so that rounds yield most tokens per second.

Packed tokens are the currency. A row's anchor is worth one token, its i-th drafted token the probability that it
survives, and a round of so many tokens has its price. Knows no MLX.
"""

from __future__ import annotations

from collections.abc import Sequence

from .acceptance import Acceptance
from .depth_choice import Candidate, Chosen, DepthChoice
from .exploration import Exploration
from .round_cost import Cost
from .round_timing import ENOUGH, MEMORY, Forecast, RoundTiming

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
        self.acceptance = Acceptance(block - 1)
        self.timing = RoundTiming()
        self.forecast: Forecast | None = None
        """Of the round whose depths were chosen last; None if it has prompts, or no row that decodes."""
        self._exploration = Exploration(self.acceptance)
        self._extra: list[float] = []  # by packed tokens: a share of what a first round takes, 0 after it
        self._trials: dict[int, int] = {}  # by rows, the round in which one began

    def depths(self, rows: Sequence[Candidate], prompt: int = 0) -> list[int]:
        """For each row the drafted tokens to verify in the next round, which also has `prompt` tokens of prompts."""
        self.forecast = None
        if not rows:
            return []
        self.acceptance.next_round()
        self.timing.next_round()
        choice = self._choice(rows, prompt)
        chosen = choice.best()
        if not prompt and self._tries_without(choice, chosen):
            chosen, depths = choice.plain, choice.plain.depths
        else:
            depths = self._exploration.add(choice, chosen)
        if not prompt:
            self.forecast = self._forecast(choice, chosen, depths)
        if self.cost.first:
            self._extra[len(rows) + prompt + sum(depths)] = 0.0
        return depths

    def _choice(self, rows: Sequence[Candidate], prompt: int) -> DepthChoice:
        chances = [self.acceptance.chances(row.key, min(row.left, self.block) - 1) for row in rows]
        most = len(rows) * self.block
        if self.cost.first:
            self._extra += [self.cost.first / REUSE] * (most + prompt + 1 - len(self._extra))
        timed = self.timing.listed(len(rows), most)
        return DepthChoice(self.cost, self.block, rows, chances, prompt, self._extra, timed)

    def _forecast(self, choice: DepthChoice, chosen: Chosen, depths: Sequence[int]) -> Forecast:
        """How a round without prompts is priced in which rows verify so many drafted tokens."""
        drafted, tokens = sum(depths), len(depths) + sum(depths)
        share = self._extra[tokens] if self.cost.first else 0.0
        seconds = choice.seconds(drafted, sum(depth > 0 for depth in depths)) - share
        seconds -= self.timing.of(drafted > 0, tokens)
        return Forecast(tokens, drafted > 0, depths != chosen.depths, seconds, choice.seconds(0, 0), REUSE * share)

    def _tries_without(self, choice: DepthChoice, chosen: Chosen) -> bool:
        """Whether to leave drafts out, because what rounds take without them was not timed for long and may matter."""
        rows = len(choice.rows)
        if not any(chosen.depths) or self.timing.known(False, rows):
            return False
        size, now = rows.bit_length(), self.timing.round
        if size in self._trials and (since := now - self._trials[size]) <= MEMORY:
            return since < TRIAL
        if PLAUSIBLE * choice.plain.rate > chosen.rate:
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
            self._exploration.took(max(0.0, seconds / self.timing.pace - launched.plain))
        elif read.drafting == launched.drafting:
            self.timing.learn(read, seconds)

    def observe(self, key: str, depth: int, accepted: int) -> None:
        """A round verified `depth` drafted tokens of a row and accepted the first `accepted` of them."""
        if depth:
            self.acceptance.observe(key, depth, accepted)
            self._exploration.observe(key, accepted)

    def forget(self, key: str) -> None:
        """The row is done."""
        self.acceptance.forget(key)
        self._exploration.forget(key)
