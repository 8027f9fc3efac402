"""Drafts that are not worth it as far as is known, to find out whether that has changed. Knows no MLX."""

from __future__ import annotations

from itertools import accumulate

from .acceptance import Acceptance
from .depth_choice import Chosen, DepthChoice

SHARE = 0.01
"""Of the time, what probes may take."""

PATIENCE = 0.25
"""By how much of the first interval each probe that did not pay lengthens the one to the next."""

LONGEST = 4.0
"""How many times the first interval it may become."""


class Exploration:
    """Lets the draft write for a few rows now and then while no row drafts.

    A share of each round's time goes into a purse, and probes are paid from it. What their accepted tokens were worth
    flows back. So a probe that pays can be repeated at once, until the estimates have followed; while probes do not
    pay, they cost less and less.
    """

    def __init__(self, acceptance: Acceptance):
        self._acceptance = acceptance
        self._purse: float | None = None
        self._failures = 0
        self._pending: dict[str, float] = {}  # rows under way, and the seconds that a token was worth
        self._price = self._balance = 0.0

    def add(self, choice: DepthChoice, chosen: Chosen) -> list[int]:
        """The chosen depths, with a probe if none of its rows drafts and the purse allows."""
        rows = [row for row, candidate in enumerate(choice.rows) if candidate.left > 1 and choice.passing[row]]
        if any(chosen.depths) or self._pending or not rows:
            return chosen.depths
        worth = chosen.seconds / chosen.tokens
        rows.sort(key=lambda row: self._acceptance.judged(choice.rows[row].key))
        # The chance that a position is judged, and how many are, summed over positions.
        judged = [1.0, *choice.chances[rows[0]]] + [0.0] * choice.block
        known = list(accumulate(judged))

        def price(count: int, depth: int) -> float:
            return choice.seconds(count * depth, count, depth) - choice.seconds(0, 0)

        # What is left of the price of so many rows at such a depth after the tokens that are expected.
        losses = {
            (count, depth): price(count, depth) - count * (known[depth] - 1) * worth
            for count in _doubling(len(rows))
            for depth in range(1, choice.block)
        }
        # Saving up for twice the cheapest probe: for little more, several rows or deeper drafts tell much more.
        needed = 2 * max(0.0, min(losses.values()))
        self._purse = needed if self._purse is None else self._purse + SHARE * chosen.seconds
        allowed = self._purse / min(LONGEST, 1 + PATIENCE * self._failures)
        if allowed < needed:
            return chosen.depths
        count, depth = max(
            (size for size, loss in losses.items() if loss <= allowed), key=lambda size: size[0] * known[size[1] - 1]
        )
        self._price = price(count, depth)
        self._balance = -self._price
        self._purse += self._balance
        depths = list(chosen.depths)
        for row in rows[:count]:
            depths[row] = min(depth, choice.rows[row].left - 1)
            self._pending[choice.rows[row].key] = worth
        return depths

    def took(self, seconds: float) -> None:
        """A probe has made a round so much longer: what goes beyond its price is paid too."""
        assert self._purse is not None
        paid = min(self._price, seconds)
        self._price -= paid
        self._purse -= seconds - paid
        self._balance -= seconds - paid

    def observe(self, key: str, accepted: int) -> None:
        """A round accepted so many drafted tokens of a row."""
        if key in self._pending:
            self._settle(accepted * self._pending.pop(key))

    def forget(self, key: str) -> None:
        """The row is done; what it drafted last is not known."""
        if self._pending.pop(key, None):
            self._settle(0.0)

    def _settle(self, gain: float) -> None:
        assert self._purse is not None
        self._purse += gain
        self._balance += gain
        if not self._pending:
            self._failures = 0 if self._balance >= 0 else self._failures + 1


def _doubling(most: int) -> list[int]:
    """1, 2, 4, … and `most`."""
    return [*(1 << power for power in range((most - 1).bit_length())), most]
