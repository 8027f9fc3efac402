"""Rounds that are not the best as far as is known, to find out whether that has changed. Knows no MLX."""

from __future__ import annotations

from itertools import accumulate

from .acceptance import Acceptance
from .depth_choice import Chosen, DepthChoice
from .round_times import LEAST

SHARE = 0.005
"""Of the time, what trials may lose."""

START = 50
"""Rounds whose share is there from the first: what an earlier start has learned may not hold any more."""


class Exploration:
    """Tries what the choice leaves out: drafts of a few rows while none drafts, rounds without drafts while some do.

    One rule for both: a share of each round's time goes into a purse, a trial is made as soon as the purse has what it
    is expected to lose, and is paid from it. What the accepted tokens of drafts were worth flows back. So drafts that
    pay are repeated at once, until the estimates have followed.
    """

    def __init__(self, acceptance: Acceptance):
        self._acceptance = acceptance
        self._purse, self._due = 0.0, START  # and rounds whose share is due
        self._again = False
        self._pending: dict[str, float] = {}  # rows under way, and the seconds that a token was worth

    def instead(self, choice: DepthChoice, best: Chosen) -> Chosen:
        """The best round, or one to try."""
        self._purse, self._due = self._purse + self._due * SHARE * best.seconds, 1
        if self._again and not choice.prompt:
            self._again = False
            return choice.plain
        if self._pending:
            return best
        return self._without(choice, best) if any(best.depths) else self._with(choice, best)

    def _without(self, choice: DepthChoice, best: Chosen) -> Chosen:
        """Two rounds without drafts, as only one whose neighbour is its like is timed well; none if they could not be
        the best even if they took far less than is known.
        """
        plain = choice.plain
        loss = 2 * (plain.seconds - plain.tokens / best.rate)
        if choice.prompt or loss > self._purse or plain.rate < LEAST * best.rate:
            return best
        self._purse -= loss
        self._again = True
        return plain

    def _with(self, choice: DepthChoice, best: Chosen) -> Chosen:
        """Drafts of the rows that were not judged for longest, of as many and as deep as the purse allows."""
        rows = [row for row, candidate in enumerate(choice.rows) if candidate.left > 1 and choice.passing[row]]
        if not rows:
            return best
        rows.sort(key=lambda row: self._acceptance.judged(choice.rows[row].key))
        # The chance that a position is judged, and how many are, summed over positions.
        judged = [1.0, *choice.chances[rows[0]]] + [0.0] * choice.block
        known = list(accumulate(judged))
        trials: list[tuple[float, int, int, float]] = []  # positions judged, rows, depth and price
        for count in _doubling(len(rows)):
            for depth in range(1, choice.block):
                price = choice.seconds(count * depth, count, depth) - choice.seconds(0, 0)
                if price - count * (known[depth] - 1) / best.rate <= self._purse:
                    trials.append((count * known[depth - 1], count, depth, price))
        if not trials:
            return best
        _, count, depth, price = max(trials)
        self._purse -= price
        depths = list(best.depths)
        for row in rows[:count]:
            depths[row] = min(depth, choice.rows[row].left - 1)
            self._pending[choice.rows[row].key] = 1 / best.rate
        return Chosen(depths, best.tokens, best.seconds + price)

    def wait(self) -> None:
        """A round is the best one without a choice; its share is due at the next one."""
        self._due += 1

    def observe(self, key: str, accepted: int) -> None:
        """A round accepted so many drafted tokens of a row."""
        self._purse += accepted * self._pending.pop(key, 0.0)

    def forget(self, key: str) -> None:
        """The row is done; what it drafted last is not known."""
        self._pending.pop(key, None)


def _doubling(most: int) -> list[int]:
    """1, 2, 4, … and `most`."""
    return [*(1 << power for power in range((most - 1).bit_length())), most]
