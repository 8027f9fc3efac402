"""The row budget: how many drafted tokens of each row to verify, so that rounds yield most tokens per second.

Packed tokens are the currency. A row's anchor is worth one token, its i-th drafted token the probability that it
survives, and a round of so many tokens has its price. Knows no MLX.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from ..drafting.suffix import LEAST_MATCH, MOST
from ..schedule.row import FROM_DRAFT
from .acceptance import Acceptance
from .command_buffers import shallower
from .depth_choice import Candidate, Chosen, DepthChoice
from .exploration import Exploration
from .round_cost import Cost
from .round_timing import ENOUGH, MEMORY, Forecast, RoundTiming

MATCHES = (LEAST_MATCH, 5, 8)
"""The shortest match of each kind of copied drafts: the more tokens are alike, the likelier is what follows."""

PRIORS = (0.5, -0.5, -1.5)
"""First guesses of the log-odds that such a copied token is rejected."""

REUSE = 32
"""Rounds with the same number of tokens over which what the first of them takes is spread."""

PLAUSIBLE = 2.0
"""How many times as fast as priced rounds without drafts might be, if none was timed for long."""

TRIAL = ENOUGH + 1
"""Rounds without drafts in a row, to time them: enough, and one more, whose neighbour drafts."""


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
        self.timing = RoundTiming()
        self.forecast: Forecast | None = None
        """Of the round whose depths were chosen last; None if it has prompts, or no row that decodes."""
        self._exploration = Exploration(self.acceptance)
        self._extra: list[float] = []  # by packed tokens: a share of what a first round takes, 0 after it
        self._trials: dict[int, int] = {}  # by rows, the round in which one began

    def depths(self, rows: Sequence[Candidate], prompt: int = 0, most: Callable[[int], int] = int) -> list[int]:
        """For each row the drafted tokens to verify in the next round, which also has `prompt` tokens of prompts.

        `most` says how many of so many drafted tokens the round takes; all of them unless the device bounds it.
        """
        self.forecast, self.kinds = None, []
        if not rows:
            return []
        for acceptance in (self.acceptance, *self._copied):
            acceptance.next_round()
        self.timing.next_round()
        choice = self._choice(rows, prompt)
        chosen = choice.best()
        if not prompt and self._tries_without(choice, chosen):
            chosen, depths = choice.plain, choice.plain.depths
        else:
            depths = self._exploration.add(choice, chosen)
        depths = shallower(depths, most(sum(depths)))
        if not prompt:
            self.forecast = self._forecast(choice, chosen, depths)
        if self.cost.first:
            self._extra[len(rows) + prompt + sum(depths)] = 0.0
        return depths

    def _choice(self, rows: Sequence[Candidate], prompt: int) -> DepthChoice:
        offers = self._offers(rows)
        self.kinds, chances = [kind for kind, _ in offers], [own for _, own in offers]
        most = len(rows) * self.width
        if self.cost.first:
            self._extra += [self.cost.first / REUSE] * (most + prompt + 1 - len(self._extra))
        timed = self.timing.listed(len(rows), most, self.block > 1)
        passing = [
            kind == FROM_DRAFT and row.writing and self.block > 1 for kind, row in zip(self.kinds, rows, strict=True)
        ]
        return DepthChoice(self.cost, self.block, rows, chances, prompt, self._extra, timed, passing)

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

    def _forecast(self, choice: DepthChoice, chosen: Chosen, depths: Sequence[int]) -> Forecast:
        """How a round without prompts is priced in which rows verify so many drafted tokens."""
        drafted, tokens = sum(depths), len(depths) + sum(depths)
        drafting = drafted > 0 and self.block > 1
        passes = sum(depth > 0 and passing for depth, passing in zip(depths, choice.passing, strict=True))
        share = self._extra[tokens] if self.cost.first else 0.0
        deepest = max((depth for depth, passing in zip(depths, choice.passing, strict=True) if passing), default=0)
        seconds = choice.seconds(drafted, passes, deepest) - share
        seconds -= self.timing.of(drafting, tokens)
        return Forecast(tokens, drafting, depths != chosen.depths, seconds, choice.seconds(0, 0), REUSE * share)

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

    def observe(self, key: str, depth: int, accepted: int, kind: int = FROM_DRAFT) -> None:
        """A round verified `depth` drafted tokens of a row and accepted the first `accepted` of them."""
        if not depth:
            return
        if kind != FROM_DRAFT:
            return self._copied[kind - FROM_DRAFT - 1].observe(key, depth, accepted)
        self.acceptance.observe(key, depth, accepted)
        self._exploration.observe(key, accepted)

    def forget(self, key: str) -> None:
        """The row is done."""
        for acceptance in (self.acceptance, *self._copied):
            acceptance.forget(key)
        self._exploration.forget(key)
