"""How likely a row's drafted tokens are to survive, learned from what was accepted. Knows no MLX.

The odds that a drafted token is rejected, given that all before it were accepted, are those of its position, which
all rows share, times a factor of its row. Both are kept as logarithms and learned as the ratings of players are:
each round moves them by what surprised it, the further the less is known of them. A round tells about the positions
that were accepted and the first that was not; of what lies beyond, it tells nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MEMORY = 0.98
"""What is left, a round later, of what sets a row apart: evidence fades, and a row that is not judged returns to what
all rows do."""

SPREAD = 1.0
"""First guess of the variance of log-odds between rows."""

LEAST_SPREAD = 0.1
"""The variance between rows is never taken to be less, or a row that changes would not be noticed."""

SPREAD_RATE = 0.01
"""Weight of one row's round in the variance between rows."""

UNKNOWN = 2.0
"""Variance of a position's log-odds before it is judged; the first guess is the prior, or the position before it."""

DRIFT = 0.001
"""What a round adds to the variance of a position's log-odds."""

NEIGHBOUR = 0.25
"""Variance of the difference between neighbouring positions; those that are seldom judged follow those before them."""

LARGEST_STEP = 1.5
"""Of log-odds in one round, lest a surprise where all seemed certain throws them far off."""

LARGEST = 50.0
"""Log-odds that no position comes near: the surer the odds, the less a round moves them."""

OPTIMISM = 0.4
"""By how many standard deviations of log-odds chances are estimated better than they look. Without it, a row that had
bad luck would no longer draft, and nothing would tell that it was luck.
"""

NEGLIGIBLE = 0.01
"""Chances below it are not worth the host's time."""


@dataclass(slots=True)
class Rating:
    """Log-odds of rejection (of a row: what it adds to its positions'), their variance, the round in which they were
    last judged (0: never), and what has been observed since they last learned.
    """

    value: float
    variance: float
    judged: int = 0
    surprise: float = 0.0
    information: float = 0.0

    def learn(self, round: int) -> None:
        """Take in what was observed: one step of a Kalman filter on log-odds."""
        self.variance /= 1 + self.variance * self.information
        self.value += max(-LARGEST_STEP, min(LARGEST_STEP, self.variance * self.surprise))
        self.surprise = self.information = 0.0
        self.judged = round


class Acceptance:
    """Estimates for rows by their keys. A new row begins with what the others taught about the positions.

    Args:
        positions: most drafted tokens of a row in a round.
        prior: first guess of the log-odds of rejection.
    """

    def __init__(self, positions: int, prior: float = 0.0):
        self._prior = prior
        self._positions = [Rating(prior, UNKNOWN) for _ in range(positions)]
        self._odds = [1.0] * positions
        self._hoped = [1.0] * positions
        self._rows: dict[str, Rating] = {}
        self._spread = SPREAD
        self._round = 0

    def next_round(self) -> None:
        """A round begins: the positions learn from all rows that were observed since the last one."""
        self._round += 1
        before = self._prior
        for place, rating in enumerate(self._positions):
            if rating.information:
                if not rating.judged:
                    rating.value = before
                rating.variance = self._variance(rating)
                rating.learn(self._round)
            if rating.judged:
                weight = rating.variance / (rating.variance + NEIGHBOUR) if place else 0.0
                before = rating.value + weight * (before - rating.value)
            self._odds[place] = math.exp(before)
            self._hoped[place] = math.exp(before - OPTIMISM * math.sqrt(self._variance(rating)))

    def observe(self, key: str, depth: int, accepted: int) -> None:
        """A round verified `depth` drafted tokens of the row, at least one, and accepted the first `accepted`."""
        if key not in self._rows:
            self._rows[key] = Rating(0.0, self._spread, self._round)
        rating = self._rows[key]
        rating.value, rating.variance = self._faded(rating)
        factor = math.exp(rating.value)
        tried = accepted + (accepted < depth)
        for place, (position, odds) in enumerate(zip(self._positions[:tried], self._odds, strict=False)):
            acceptance = 1 / (1 + factor * odds)
            surprise = acceptance - (place < accepted)
            information = acceptance * (1 - acceptance)
            position.surprise += surprise
            position.information += information
            rating.surprise += surprise
            rating.information += information
        rating.learn(self._round)
        self._spread += SPREAD_RATE * (rating.value**2 + rating.variance - self._spread)
        self._spread = max(LEAST_SPREAD, self._spread)

    def chances(self, key: str, depth: int) -> list[float]:
        """The probability that all of the row's first 1, 2, … drafted tokens are accepted, at most `depth` of them and
        only as long as it matters.
        """
        rating = self._rows.get(key)
        value, variance = self._faded(rating) if rating else (0.0, self._spread)
        factor = math.exp(value - OPTIMISM * math.sqrt(variance))
        chance, chances = 1.0, []
        for odds in self._hoped[:depth]:
            chance /= 1 + factor * odds
            if chance < NEGLIGIBLE:
                break
            chances.append(chance)
        return chances

    def judged(self, key: str) -> int:
        """The round in which the row was last judged, 0 if never."""
        rating = self._rows.get(key)
        return rating.judged if rating else 0

    def to_list(self) -> list[float | None]:
        """What is worth keeping: the log-odds of the positions, None where they were never judged."""
        return [own.value if own.judged else None for own in self._positions]

    def begin(self, learned: Sequence[float | None]) -> None:
        """Go on from there. The next requests may be others: it is where to begin, and no more certain than a guess.

        Raises:
            TypeError, ValueError, OverflowError: these are no log-odds.
        """
        self._round = 1  # as if all had been judged in it
        for place, value in enumerate(learned[: len(self._positions)]):
            if value is not None:
                if not abs(value) < LARGEST:
                    raise ValueError("nobody can have learned such odds")
                self._positions[place] = Rating(float(value), UNKNOWN, self._round)

    def forget(self, key: str) -> None:
        """The row is done."""
        self._rows.pop(key, None)

    def _variance(self, position: Rating) -> float:
        """A position's variance by now; what is not judged becomes uncertain."""
        return min(UNKNOWN, position.variance + DRIFT * (self._round - position.judged))

    def _faded(self, row: Rating) -> tuple[float, float]:
        """A row's value and variance by now."""
        memory = MEMORY ** (self._round - row.judged)
        return row.value * memory, self._spread + (row.variance - self._spread) * memory**2
