"""What rounds take beyond what the cost model says, learned while they run. Knows no MLX.

The model is fitted before any request is there, to passes through the models alone. What a round takes besides shows
only as it runs: the host's own work, a chip that is hot, another program on the machine. It is learned for rounds that
draft and for rounds that do not, by packed tokens: those of one power of two count together, and lines connect them.
Of all that a round could be, only what is tried is timed; what has fewer or more tokens than that is taken to be as
good as it allows, so that it will be tried.

Machines also slow down and recover as a whole, for seconds or minutes. That is no reason to prefer other rounds than
those that happened to be timed, so the pace of the latest rounds, whatever their kind, is taken out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from statistics import fmean, median_low

PACE = 9
"""Latest rounds whose median is the machine's pace."""

LATEST, ENOUGH = 25, 3
"""Rounds of a kind whose median counts, and how many there must be: an interruption is outvoted. Far more than those
that make the pace, which thus follows first.
"""

MEMORY = 256
"""Rounds after which what was timed no longer counts: drafts that took too long are tried again. What rounds take
without drafts counts until it is timed again.
"""

LEAST = 0.6
"""Part of the model's price below which no round is believed, lest one with less context seems free."""


@dataclass(frozen=True)
class Forecast:
    """A round as it was priced.

    Attributes:
        tokens: packed ones.
        drafting: whether any row drafts.
        probe: whether it is there to find something out.
        seconds: by the cost model alone.
        plain: without its drafts, as far as is known.
        once: seconds of it that come only with the first round of its size.
    """

    tokens: int
    drafting: bool
    probe: bool
    seconds: float
    plain: float
    once: float


@dataclass(slots=True)
class Timed:
    """Packed tokens of the latest rounds and their seconds beyond the model's, and the number of the last of them."""

    tokens: deque[int] = field(default_factory=lambda: deque(maxlen=LATEST))
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))
    last: int = 0


class RoundTiming:
    """Seconds beyond the cost model's, for rounds with drafts and without, at the pace of the first rounds."""

    def __init__(self) -> None:
        self._paces: deque[float] = deque(maxlen=PACE)
        self._timed: dict[bool, dict[int, Timed]] = {False: {}, True: {}}
        self._known: dict[bool, dict[int, tuple[float, float]]] = {False: {}, True: {}}  # tokens and seconds by size
        self.round = 0

    def next_round(self) -> None:
        """A round begins: what drafting took long ago is forgotten."""
        self.round += 1
        timed = self._timed[True]
        for size in [size for size, own in timed.items() if self._old(own)]:
            del timed[size]
            self._known[True].pop(size, None)

    @property
    def pace(self) -> float:
        """How many times as long as they would usually take rounds take now."""
        return median_low(self._paces) if len(self._paces) >= ENOUGH else 1.0

    def learn(self, forecast: Forecast, seconds: float) -> None:
        """A round like this took so long."""
        size, model = _size(forecast.tokens), forecast.seconds
        known, seconds = self._known[forecast.drafting], seconds - forecast.once
        if seconds <= 0:  # it was not the first of its size after all: another had its kernels planned
            return
        if size in known:
            self._paces.append(seconds / max(LEAST * model, model + self.of(forecast.drafting, forecast.tokens)))
        timed = self._timed[forecast.drafting].setdefault(size, Timed())
        if self._old(timed):
            timed.tokens.clear()
            timed.seconds.clear()
        timed.tokens.append(forecast.tokens)
        timed.seconds.append(max(LEAST * model, seconds / self.pace) - model)
        timed.last = self.round
        if len(timed.seconds) >= ENOUGH:
            known[size] = fmean(timed.tokens), median_low(timed.seconds)

    def known(self, drafting: bool, tokens: int) -> bool:
        """Whether enough rounds of this kind were timed, not long ago."""
        timed = self._timed[drafting].get(_size(tokens))
        return timed is not None and len(timed.seconds) >= ENOUGH and not self._old(timed)

    def of(self, drafting: bool, tokens: int) -> float:
        """Of a round of so many packed tokens."""
        return self._line(drafting, tokens, tokens + 1)[0]

    def listed(self, rows: int, drafted: int, drafting: bool = True) -> list[float]:
        """Of rounds in which so many rows decode, with 0, 1, 2, … up to `drafted` drafted tokens, which a draft writes
        if it is `drafting`.
        """
        if not any(self._known.values()):
            return []
        return [self.of(False, rows), *self._line(drafting, rows + 1, rows + drafted + 1)]

    def _line(self, drafting: bool, begin: int, end: int) -> list[float]:
        """Of rounds of `begin`, `begin` + 1, … packed tokens."""
        known = self._known[drafting] or self._known[False]
        if not known:
            return [0.0] * (end - begin)
        points = sorted(known.values())
        line: list[float] = []
        for (a, low), (b, high) in pairwise([(0.0, min(0.0, points[0][1])), *points]):
            slope = (high - low) / (b - a)
            line += [low + slope * (tokens - a) for tokens in range(max(begin, ceil(a)), min(end, ceil(b)))]
        return line + [points[-1][1]] * (end - begin - len(line))

    def _old(self, timed: Timed) -> bool:
        return self.round - timed.last > MEMORY


def _size(tokens: int) -> int:
    return tokens.bit_length()
