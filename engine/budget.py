"""The row budget: how many drafted tokens of each row to verify, so that rounds yield most tokens per second.

Packed tokens are the currency. A row's anchor is worth one token, its i-th drafted token the probability that it
survives, and a round of so many tokens has its price. Knows no MLX.
"""

from __future__ import annotations

from collections.abc import Sequence

from .cost import Cost
from .market import Candidate, Market
from .probing import Probing
from .survival import Survival

REUSE = 32
"""Rounds with the same number of tokens over which what the first of them takes is spread."""


class Budget:
    """Chooses depths round by round and learns from what was accepted, in whatever later round that is known.

    Args:
        cost: predicted seconds on this machine, with those of the draft.
        block: tokens of a draft's block, its anchor included; at least 2.
    """

    def __init__(self, cost: Cost, block: int):
        self.cost, self.block = cost, block
        self.survival = Survival(block - 1)
        self._probing = Probing(self.survival)
        self._extra: list[float] = []  # by packed tokens: a share of what a first round takes, 0 after it

    def depths(self, rows: Sequence[Candidate], prompt: int = 0) -> list[int]:
        """For each row the drafted tokens to verify in the next round, which also has `prompt` tokens of prompts."""
        if not rows:
            return []
        self.survival.next_round()
        chances = [self.survival.chances(row.key, min(row.left, self.block) - 1) for row in rows]
        if self.cost.first:
            most = len(rows) * self.block + prompt
            self._extra += [self.cost.first / REUSE] * (most + 1 - len(self._extra))
        market = Market(self.cost, self.block, rows, chances, prompt, self._extra)
        depths = self._probing.add(market, market.best())
        if self.cost.first:
            self._extra[len(rows) + prompt + sum(depths)] = 0.0
        return depths

    def observe(self, key: str, depth: int, accepted: int) -> None:
        """A round verified `depth` drafted tokens of a row and accepted the first `accepted` of them."""
        if depth:
            self.survival.observe(key, depth, accepted)
            self._probing.observe(key, accepted)

    def forget(self, key: str) -> None:
        """The row is done."""
        self.survival.forget(key)
        self._probing.forget(key)
