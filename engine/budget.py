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

    def depths(self, rows: Sequence[Candidate], prompt: int = 0) -> list[int]:
        """For each row the drafted tokens to verify in the next round, which also has `prompt` tokens of prompts."""
        if not rows:
            return []
        self.survival.next_round()
        chances = [self.survival.chances(row.key, min(row.left, self.block) - 1) for row in rows]
        market = Market(self.cost, self.block, rows, chances, prompt)
        return self._probing.add(market, market.best())

    def observe(self, key: str, depth: int, accepted: int) -> None:
        """A round verified `depth` drafted tokens of a row and accepted the first `accepted` of them."""
        if depth:
            self.survival.observe(key, depth, accepted)
            self._probing.observe(key, accepted)

    def forget(self, key: str) -> None:
        """The row is done."""
        self.survival.forget(key)
        self._probing.forget(key)
