"""What a round and a draft pass take on this machine, fitted to measurements. Knows no MLX.

A round's time is flat in its packed tokens while weights are read, rises once arithmetic binds, and has steps where
kernels begin another tile: a monotone piecewise-linear curve holds all of that. Rows, context that is read and pairs
of token and context that are computed add to it linearly.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from ...kernels.pages.sizes import pages_for

TILES = (8, 16, 32, 64, 128)
"""Widths of kernels' tiles, past which a step of the curve is looked for."""

CONTEXTS = (256, 2048)
"""Tokens of context per row at which they are measured."""

MOST = 1e6
"""No number of a cost is as large, neither of seconds nor of tokens."""

SWEEPS = 2000
"""Most passes over the coefficients when fitting them."""

OWN = 0.5
"""Part of the fastest measurement that a round takes without rows and context, at least. Few and noisy measurements may
seem to say that context is all that counts; then a round without any would take no time.
"""


@dataclass(frozen=True)
class RoundShape:
    """What is timed: a round of `tokens` that decoding rows share as evenly as they can, or one draft pass for the
    rows, `tokens` in all of their blocks. Each row has `context` tokens behind it.
    """

    rows: int
    tokens: int
    context: int
    draft: bool = False


@dataclass(frozen=True)
class Point:
    """A measurement: packed tokens, rows, context summed over rows, and the seconds it took."""

    tokens: int
    rows: int
    context: int
    seconds: float

    @property
    def pairs(self) -> float:
        """Pairs of a token and one of its row's context, where rows have as many tokens each."""
        return self.tokens * self.context / self.rows


def shapes_to_time(max_rows: int, block: int, pages: int = 1 << 24, width: int = 0) -> list[RoundShape]:
    """What to time where a draft's block has so many tokens, and a row in a round up to `width` if these are more;
    cheapest first: whoever times may stop when it takes too long, the curve goes on beyond.

    Each shape should run once for its kernels to be built, then a few times: of points at the same shape the median
    counts. Packed tokens double or grow by half, with one more past each tile; each number is tried with as few rows
    as can hold it and with as many, which tells rows from tokens; long contexts are tried at both ends, with one token
    of a row and with whole blocks, as far as they fit in so many pages.
    """
    block, width = max(1, block), max(1, block, width)
    most = max_rows * width
    short, long = CONTEXTS
    sizes = {1, most, *(tile + 1 for tile in TILES)}
    for power in range(1, most.bit_length()):
        sizes |= {1 << power, 3 << power}
    shapes: set[RoundShape] = set()
    for tokens in (size for size in sizes if size <= most):
        few, many = -(-tokens // width), min(tokens, max_rows)
        shapes |= {RoundShape(few, tokens, short), RoundShape(many, tokens, short)}
    ends = {1, max(1, min(max_rows, pages // pages_for(long + width)))}
    shapes |= {RoundShape(rows, rows * each, long) for rows in ends for each in (1, width)}
    if block > 1:
        rows = {max_rows, *(1 << power for power in range(max_rows.bit_length()))}
        shapes |= {RoundShape(count, count * block, short, draft=True) for count in rows}
        shapes |= {RoundShape(count, count * block, long, draft=True) for count in ends}
    shapes = {shape for shape in shapes if shape.rows * pages_for(shape.context + width) <= pages}
    return sorted(shapes, key=lambda shape: (shape.tokens, shape.rows, shape.context, shape.draft))


@dataclass(frozen=True)
class Curve:
    """Seconds as a monotone piecewise-linear function of tokens, plus seconds per row, per token of context, and per
    pair of a token and one of its row's context.

    Beyond its last knot the curve goes on as it rose on average over the upper half of its knots.
    """

    knots: tuple[int, ...]
    seconds: tuple[float, ...]
    per_row: float
    per_context: float
    per_pair: float
    residual: float

    @classmethod
    def fit(cls, points: Iterable[Point]) -> Curve:
        """Least squares of relative errors over non-negative coefficients, by coordinate descent. A round has some time
        of its own.

        Raises:
            ValueError: no points, or one that took no time.
        """
        medians = _medians(points)
        knots = tuple(sorted({point.tokens for point in medians}))
        rows = [([*_ramps(knots, p.tokens), p.rows, p.context, p.pairs], p.seconds) for p in medians]
        own = OWN * min(p.seconds for p in medians)
        found = _least_squares([[x / y for x in xs] for xs, y in rows], [own] + [0.0] * (len(knots) + 2))
        base, *rises = found[: len(knots)]
        seconds = [base]
        for rise in rises:
            seconds.append(seconds[-1] + rise)
        errors = [abs(sum(x * c for x, c in zip(xs, found, strict=True)) / y - 1) for xs, y in rows]
        return cls(knots, tuple(seconds), found[-3], found[-2], found[-1], median(errors))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Curve:
        """Raises KeyError, TypeError or ValueError if these are not the fields of a curve that rises."""
        curve = cls(**{**fields, "knots": tuple(fields["knots"]), "seconds": tuple(fields["seconds"])})
        knots, seconds = curve.knots, curve.seconds
        slopes = (curve.per_row, curve.per_context, curve.per_pair, curve.residual)
        rises = all(0 < a < b for a, b in pairwise(knots)) and all(a <= b for a, b in pairwise(seconds))
        if not (knots and len(knots) == len(seconds) and rises and all(map(_sound, (*knots, *seconds, *slopes)))):
            raise ValueError("this is no curve")
        return curve

    def at(self, tokens: int) -> float:
        """Seconds for so many packed tokens, without what rows and context add."""
        knots, seconds = self.knots, self.seconds
        right = bisect_right(knots, tokens)
        if right == 0:
            return seconds[0]
        if right == len(knots):
            middle = (len(knots) - 1) // 2
            width = knots[-1] - knots[middle]
            slope = (seconds[-1] - seconds[middle]) / width if width else seconds[-1] / knots[-1]
            return seconds[-1] + slope * (tokens - knots[-1])
        share = (tokens - knots[right - 1]) / (knots[right] - knots[right - 1])
        return seconds[right - 1] + share * (seconds[right] - seconds[right - 1])


NOTHING = Curve((1,), (0.0,), 0.0, 0.0, 0.0, 0.0)


class Cost:
    """Predicted seconds of rounds and draft passes.

    Args:
        round: over packed tokens, rows and summed context.
        draft: over tokens of all blocks, rows and summed context.
        first: what the first round with some number of tokens takes besides: on CUDA, MLX plans each size anew.
        workspace: bytes that rounds and draft passes took at most beside what rows keep.
        step: of drafts that take a pass for each token of a row: over the rows of every pass but the first.
    """

    def __init__(self, round: Curve, draft: Curve, first: float = 0.0, workspace: int = 0, step: Curve = NOTHING):
        self.round, self.draft, self.first, self.workspace, self.step = round, draft, first, workspace, step
        self._rounds: list[float] = []
        self._drafts: list[float] = []
        self._steps: list[float] = []

    @classmethod
    def fit(
        cls,
        rounds: Iterable[Point],
        drafts: Iterable[Point],
        first: float = 0.0,
        workspace: int = 0,
        steps: Iterable[Point] = (),
    ) -> Cost:
        """Without a draft there are no `drafts`, and passes cost nothing; likewise without `steps`."""
        draft, step = (Curve.fit(points) if points else NOTHING for points in (list(drafts), list(steps)))
        return cls(Curve.fit(rounds), draft, first, workspace, step)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Cost:
        """The opposite of `to_dict`, also after a trip through JSON.

        Raises:
            KeyError, TypeError, ValueError: it was written by another version, or is damaged.
        """
        round, draft, step = (Curve.from_dict(fields[name]) for name in ("round", "draft", "step"))
        first, workspace = fields["first"], fields["workspace"]
        if not (round.at(1) > 0 and _sound(first) and isinstance(workspace, int) and 0 <= workspace < 1 << 50):
            raise ValueError("rounds take some time, and a little memory")
        return cls(round, draft, first, workspace, step)

    def to_dict(self) -> dict[str, Any]:
        curves = {"round": asdict(self.round), "draft": asdict(self.draft), "step": asdict(self.step)}
        return {**curves, "first": self.first, "workspace": self.workspace}

    @property
    def residual(self) -> float:
        """Median relative error of the fit at its points, of the worse curve."""
        return max(self.round.residual, self.draft.residual)

    def rounds(self, tokens: int) -> list[float]:
        """Seconds of rounds of 0, 1, 2, … up to at least `tokens` packed tokens, without rows and context."""
        while len(self._rounds) <= tokens:
            self._rounds.append(self.round.at(len(self._rounds)))
        return self._rounds

    def drafts(self, rows: int, block: int) -> list[float]:
        """Seconds of draft passes of 0, 1, 2, … up to at least `rows` rows, without what their context adds."""
        while len(self._drafts) <= rows:
            count = len(self._drafts)
            self._drafts.append(self.draft.at(count * block) + count * self.draft.per_row if count else 0.0)
        return self._drafts

    def steps(self, rows: int) -> list[float]:
        """Seconds of a pass for one more token of 0, 1, 2, … up to at least `rows` rows, without what context adds."""
        while len(self._steps) <= rows:
            count = len(self._steps)
            self._steps.append(self.step.at(count) + count * self.step.per_row if count else 0.0)
        return self._steps


def _medians(points: Iterable[Point]) -> list[Point]:
    """One point for each shape."""
    seconds: dict[tuple[int, int, int], list[float]] = {}
    for point in points:
        seconds.setdefault((point.tokens, point.rows, point.context), []).append(point.seconds)
    if not seconds or min(map(min, seconds.values())) <= 0:
        raise ValueError("a curve needs points, each of which took some time")
    return [Point(*shape, median(values)) for shape, values in seconds.items()]


def _sound(number: float) -> bool:
    """Whether a cost may be so large: it is no less than 0, and a number."""
    return 0 <= number < MOST


def _ramps(knots: Sequence[int], tokens: int) -> list[float]:
    """A constant, then how far `tokens` is through each stretch between knots, 0 to 1."""
    return [1.0, *(min(1.0, max(0.0, (tokens - a) / (b - a))) for a, b in pairwise(knots))]


def _least_squares(matrix: list[list[float]], least: list[float]) -> list[float]:
    """Coefficients, none below its own of `least`, that bring each row of `matrix` closest to 1."""
    columns = list(zip(*matrix, strict=True))
    gram = [[sum(a * b for a, b in zip(left, right, strict=True)) for right in columns] for left in columns]
    wanted = [sum(column) for column in columns]
    found = list(least)
    for _ in range(SWEEPS):
        moved = 0.0
        for place, row in enumerate(gram):
            if row[place] == 0:
                continue
            gap = wanted[place] - sum(a * b for a, b in zip(row, found, strict=True))
            value = max(least[place], found[place] + gap / row[place])
            moved = max(moved, abs(value - found[place]) * row[place])
            found[place] = value
        if moved < 1e-9 * len(matrix):
            break
    return found
