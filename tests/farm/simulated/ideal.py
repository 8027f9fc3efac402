"""The schedule that a farm is compared with."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence


def list_schedule(sizes: Sequence[float], speeds: Sequence[float]) -> float:
    """When the last of these jobs ends if all are known at the start, the longest is given out first, and each goes to
    the row on which it ends first: seconds, for sizes in tokens and rows with these `speeds` in tokens a second.

    Longest first on related machines (Gonzalez, Ibarra, Sahni: Bounds for LPT Schedules on Uniform Processors, 1977).
    """
    free = {speed: [0.0] * count for speed, count in Counter(speeds).items()}  # of each speed when its rows are free
    last = 0.0
    for size in sorted(sizes, reverse=True):
        end, speed = min((rows[0] + size / speed, speed) for speed, rows in free.items())
        heapq.heapreplace(free[speed], end)
        last = max(last, end)
    return last


def bound(sizes: Sequence[float], speeds: Sequence[float]) -> float:
    """Seconds that no schedule can beat: all rows work all the time, or the fastest has the longest job."""
    return max(sum(sizes) / sum(speeds), max(sizes) / max(speeds))
