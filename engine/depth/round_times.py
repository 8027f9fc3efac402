"""What rounds take beyond what was calibrated, learned while they run. Knows no MLX.

The calibration times passes through the models alone, before any request is there. What a round takes besides shows
only as it runs: the host's own work, a chip that is hot, another program on the machine. It is learned for rounds that
draft and for rounds that do not, by their packed tokens: those of one power of two count together, and lines connect
them. What has fewer or more tokens than was tried is taken to be as good as that allows, so that it will be tried.

Machines also slow down and recover as a whole. That is no reason to prefer other rounds than those that happened to be
timed, so the pace of the latest rounds, whatever their kind, is taken out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import expm1, log
from statistics import median_low

PACE = 5
"""Latest rounds whose median is the machine's pace, and how many of its size a round needs before it tells of that."""

ENOUGH = 3
"""Rounds of a size that must be timed before they count."""

MEMORY = 500
"""Rounds after which what a size took counts no more than what is timed next. Drafts of that size are then forgotten,
so that they are tried again.
"""

CLIP = 0.2
"""Natural logarithm of how far off a round's time is believed to be where much is known: others were interrupted."""

LEAST = 0.5
"""Part of what was calibrated below which no round is believed."""


def believed(calibrated: float, excess: float) -> float:
    """Seconds of a round of which so many were calibrated, and so many learned beyond that."""
    return max(LEAST * calibrated, calibrated + excess)


@dataclass(frozen=True)
class Forecast:
    """A round as it was calibrated: whether any row drafts, its packed tokens, seconds, and whether kernels are built
    when it is the first of its size.
    """

    drafting: bool
    tokens: int
    seconds: float
    building: bool = False


@dataclass(slots=True)
class Size:
    """Mean tokens of rounds of about one size and their mean seconds beyond the calibration's; how many rounds these
    means are worth, and when the last of them was.
    """

    tokens: float
    excess: float = 0.0
    rounds: float = 0.0
    last: int = 0


class RoundTimes:
    """Seconds beyond the calibration's, for rounds with drafts and without, at the pace of the first rounds."""

    def __init__(self) -> None:
        self._sizes: dict[bool, dict[int, Size]] = {False: {}, True: {}}
        self._paces: deque[float] = deque(maxlen=PACE)
        self._seen: set[int] = set()
        self.round = 0

    def next_round(self) -> None:
        """A round begins: what drafting took long ago is forgotten."""
        self.round += 1
        drafting = self._sizes[True]
        for size in [size for size, own in drafting.items() if self.round - own.last > MEMORY]:
            del drafting[size]

    def learn(self, forecast: Forecast, seconds: float) -> None:
        """A round took so long. The first one of its size does not count where kernels were built for it."""
        first = self.first(forecast.tokens)
        self._seen.add(forecast.tokens)
        if (first and forecast.building) or seconds <= 0:
            return
        own = self._sizes[forecast.drafting].setdefault(forecast.tokens.bit_length(), Size(forecast.tokens))
        expected = believed(forecast.seconds, own.excess)
        if own.rounds >= PACE:
            self._paces.append(seconds / expected)
        # One round is worth as much as another, but what was learned of old is worth less: a Kalman filter's gain.
        own.rounds = 1 + own.rounds / (1 + own.rounds * (self.round - own.last) / MEMORY)
        own.last = self.round
        weight = 1 / own.rounds
        clip = CLIP + weight / 2
        surprise = max(-clip, min(clip, log(seconds / self.pace / expected)))
        own.tokens += weight * (forecast.tokens - own.tokens)
        own.excess = believed(forecast.seconds, own.excess + expected * expm1(weight * surprise)) - forecast.seconds

    def first(self, tokens: int) -> bool:
        """Whether no round had so many tokens yet."""
        return tokens not in self._seen

    @property
    def pace(self) -> float:
        """How many times as long as they would usually take rounds take now."""
        return median_low(self._paces) if self._paces else 1.0

    def expected(self, forecast: Forecast) -> float:
        """Seconds of a round at this pace."""
        return self.pace * believed(forecast.seconds, self.excess(forecast.drafting, [forecast.tokens])[0])

    def excess(self, drafting: bool, sizes: Sequence[int]) -> list[float]:
        """Of rounds with these numbers of tokens, in rising order. Drafts that were not timed add nothing to them."""
        points = self._points(drafting) or self._points(False)
        if not points:
            return [0.0] * len(sizes)
        points = [(0.0, min(0.0, points[0][1])), *points]
        found: list[float] = []
        place = 0
        for size in sizes:
            while place + 2 < len(points) and points[place + 1][0] < size:
                place += 1
            (low, below), (high, above) = points[place : place + 2]
            found.append(below + min(1.0, (size - low) / (high - low)) * (above - below))
        return found

    def _points(self, drafting: bool) -> list[tuple[float, float]]:
        return sorted((own.tokens, own.excess) for own in self._sizes[drafting].values() if own.rounds >= ENOUGH)

    def to_list(self) -> list[list[float]]:
        """What is worth keeping: of each size whether it drafts, tokens, excess and rounds."""
        kept = ((drafting, own) for drafting, sizes in self._sizes.items() for own in sizes.values())
        return [[drafting, own.tokens, own.excess, own.rounds] for drafting, own in kept if own.rounds >= ENOUGH]

    def begin(self, sizes: Iterable[Sequence[float]]) -> None:
        """Go on from there; they are worth little more than a few rounds, as another day may be another pace."""
        for drafting, tokens, excess, rounds in sizes:
            own = Size(float(tokens), float(excess), min(float(rounds), PACE))
            self._sizes[bool(drafting)][int(tokens).bit_length()] = own
