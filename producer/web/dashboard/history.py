"""The last hour in memory, for the charts. Each dashboard samples for itself: it needs no right to write to Redis,
several do not disturb each other, and what is older than the process is Prometheus's to know.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ...queue.fleet import Report

HOUR = 3600
SAMPLE_SECONDS = 5
SPAN = 12
"""Samples over which tokens per round are taken: a minute."""

Sample = tuple[int, float, float | None, int]
"""Unix seconds, tokens generated a second, tokens per round (None where nothing was decoded), jobs queued."""


class History:
    """Samples, and the counters of the last minute from which tokens per round come."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=HOUR // SAMPLE_SECONDS)
        self._counters: deque[dict[str, tuple[float, float]]] = deque(maxlen=SPAN + 1)

    @property
    def columns(self) -> list[list[float | None]]:
        """Each figure of all samples by itself, the times first."""
        return [list(column) for column in zip(*self._samples, strict=True)] or [[], [], [], []]

    def add(self, now: float, tokens_per_second: float, queued: int, reports: Sequence[Report]) -> Sample:
        counters = {report.name: (report.number("accepted"), report.number("row_rounds")) for report in reports}
        self._counters.append(counters)
        sample = (int(now), round(tokens_per_second, 1), self._tokens_per_round(), queued)
        self._samples.append(sample)
        return sample

    def _tokens_per_round(self) -> float | None:
        """Accepted tokens of the last minute by its rounds, + 1: sums over all workers, no mean of ratios."""
        before, after = self._counters[0], self._counters[-1]
        both = before.keys() & after.keys()
        rounds = sum(after[name][1] - before[name][1] for name in both)
        accepted = sum(after[name][0] - before[name][0] for name in both)
        return round(accepted / rounds + 1, 2) if rounds > 0 else None
