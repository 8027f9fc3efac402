"""The row budget: how many drafted tokens of each row to verify, so that rounds yield most tokens per second.

Packed tokens are the currency. A row's anchor is worth one token, its i-th drafted token the probability that it
survives, and a round of so many tokens has its price. Knows no MLX.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..drafting.suffix import LEAST_MATCH, MOST
from ..schedule.row import FROM_DRAFT
from .acceptance import Acceptance
from .depth_choice import Candidate, DepthChoice
from .exploration import Exploration
from .round_cost import Cost
from .round_times import Forecast, RoundTimes

MATCHES = (LEAST_MATCH, 5, 8)
"""The shortest match of each kind of copied drafts: the more tokens are alike, the likelier is what follows."""

PRIORS = (0.5, -0.5, -1.5)
"""First guesses of the log-odds that such a copied token is rejected."""

HELD = 8
"""Rows that did not draft for so many rounds go on so for one more without another choice, which costs the host time:
the longer they did not, the longer they go on, for as many rounds at most, unless they change or something is learned.
"""

MANY = 8
"""So many rows or more that draft go on so for one more round if none of them comes or goes: what one round teaches
about one of them matters less than the host's time.
"""


class Held(NamedTuple):
    """Rows by their keys and their depths, which go on so before this round."""

    keys: list[str]
    depths: list[int]
    until: int

    def fits(self, rows: Sequence[Candidate]) -> bool:
        """Whether these are the same rows, none of which is near its end."""
        return self.keys == [row.key for row in rows] and all(
            row.left > depth for row, depth in zip(rows, self.depths, strict=True)
        )


class Budget:
    """Chooses depths round by round and learns from what was accepted, in whatever later round that is known.

    Where rows may copy, each drafts what seems to be worth more: what the draft writes, or what it finds in its text.

    Args:
        cost: predicted seconds on this machine, with those of the draft.
        block: tokens of a draft's block, its anchor included; 1 without a draft.
        copying: whether rows may draft from their own text.
    """

    def __init__(self, cost: Cost, block: int, copying: bool = False):
        self.cost, self.block = cost, block
        self.width = max(block, MOST + 1) if copying else block
        self.acceptance = Acceptance(block - 1)
        self._copied = [Acceptance(MOST, prior) for prior in PRIORS] if copying else []
        self.kinds: list[int] = []
        """Of the drafts of the rows whose depths were chosen last."""
        self.times = RoundTimes()
        self.forecast: Forecast | None = None
        """Of the round whose depths were chosen last; None if it has prompts, or no row that decodes."""
        self._turned: tuple[Forecast, float] | None = None
        self._exploration = Exploration(self.acceptance)
        self._held = Held([], [], 0)
        self._drafted = 0  # the last round in which drafts were the best

    def depths(
        self, rows: Sequence[Candidate], prompt: int = 0, cut: Callable[[list[int]], list[int]] = list
    ) -> list[int]:
        """For each row the drafted tokens to verify in the next round, which also has `prompt` tokens of prompts.

        `cut` gives the depths that the round takes of those chosen; all unless command buffers are bounded.
        """
        before, self.forecast, self.kinds = self.forecast, None, []
        if not rows:
            return []
        for acceptance in (self.acceptance, *self._copied):
            acceptance.next_round()
        self.times.next_round()
        if not prompt and self._goes_on(rows) and cut(list(self._held.depths)) == self._held.depths:
            self._exploration.wait()
            self.forecast, self.kinds = before, [FROM_DRAFT] * len(rows)
            return list(self._held.depths)
        choice = self._choice(rows, prompt)
        best = choice.best()
        depths = cut(self._exploration.instead(choice, best).depths)
        if not prompt:
            self.forecast = self._forecast(choice, depths)
        if any(best.depths):
            self._drafted = self.rounds
        if not prompt and depths == best.depths and not any(self.kinds):
            many, parked = 2 if len(rows) >= MANY else 0, min(HELD, (self.rounds - self._drafted) // HELD)
            more = many if any(depths) else parked
            self._held = Held([row.key for row in rows], depths, self.rounds + more)
        return depths

    def _goes_on(self, rows: Sequence[Candidate]) -> bool:
        """Whether rows go on without another choice: none has found text of its own that it may copy."""
        if self.rounds >= self._held.until or not self._held.fits(rows):
            return False
        return not self._copied or all(row.match < LEAST_MATCH for row in rows)

    def _choice(self, rows: Sequence[Candidate], prompt: int) -> DepthChoice:
        offers = self._offers(rows)
        self.kinds, chances = [kind for kind, _ in offers], [own for _, own in offers]
        passing = [
            kind == FROM_DRAFT and row.writing and self.block > 1 for kind, row in zip(self.kinds, rows, strict=True)
        ]
        return DepthChoice(self.cost, self.block, rows, chances, prompt, self.times, passing)

    def _offers(self, rows: Sequence[Candidate]) -> list[tuple[int, list[float]]]:
        """Which kind of drafts is worth more to each row, and their chances."""
        count = len(rows)
        round = self.cost.rounds(count)[count] + self.cost.round.per_row * count
        price = self.cost.drafts(count, self.block)[count] / round  # of a row's part in a pass, in tokens
        offers: list[tuple[int, list[float]]] = []
        for row in rows:
            drafted = min(row.left, self.block) - 1 if row.writing else 0
            kind, chances = FROM_DRAFT, self.acceptance.chances(row.key, drafted)
            if self._copied and (place := bisect_right(MATCHES, row.match)):
                copied = self._copied[place - 1].chances(row.key, min(row.left - 1, MOST))
                if not chances or sum(copied) > sum(chances) - price:
                    kind, chances = FROM_DRAFT + place, copied
            offers.append((kind, chances))
        return offers

    def _forecast(self, choice: DepthChoice, depths: Sequence[int]) -> Forecast:
        """What a round without prompts takes, as far as the cost says, in which rows verify so many drafted tokens."""
        own = [depth for depth, passing in zip(depths, choice.passing, strict=True) if depth and passing]
        drafted = sum(depths)
        seconds = choice.calibrated(drafted, len(own), max(own, default=0))
        return Forecast(drafted > 0 and self.block > 1, len(depths) + drafted, seconds, self.cost.first > 0)

    def ran(self, read: Forecast | None, launched: Forecast | None, seconds: float) -> None:
        """So long after the round before it the round `read` was there, and `launched` had been handed over."""
        turned, self._turned = self._turned, None
        if not read or not launched:
            return
        if read.drafting == launched.drafting:
            self.times.learn(read, seconds)
        elif not turned:
            self._turned = (read, seconds)
        else:  # a single round among others: of both intervals, what is not one of theirs is its own
            other, before = turned
            self.times.learn(read, before + seconds - self.times.expected(other))

    def observe(self, key: str, depth: int, accepted: int, kind: int = FROM_DRAFT) -> None:
        """A round verified `depth` drafted tokens of a row and accepted the first `accepted` of them."""
        if not depth:
            return
        if not any(self._held.depths):  # what a trial has taught
            self._held = Held([], [], 0)
        if kind != FROM_DRAFT:
            return self._copied[kind - FROM_DRAFT - 1].observe(key, depth, accepted)
        self.acceptance.observe(key, depth, accepted)
        self._exploration.observe(key, accepted)

    def forget(self, key: str) -> None:
        """The row is done."""
        for acceptance in (self.acceptance, *self._copied):
            acceptance.forget(key)
        self._exploration.forget(key)

    @property
    def rounds(self) -> int:
        """How many it has chosen depths for."""
        return self.times.round

    def to_dict(self) -> dict[str, Any]:
        """What is worth keeping for the next start with this pair, fit for JSON."""
        estimates = [acceptance.to_list() for acceptance in (self.acceptance, *self._copied)]
        return {"acceptance": estimates, "times": self.times.to_list()}

    def begin(self, learned: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: it was written by another version, or is damaged.
        """
        for acceptance, own in zip((self.acceptance, *self._copied), learned["acceptance"], strict=False):
            acceptance.begin(own)
        self.times.begin(learned["times"])
