"""The ideal schedule beside the best one, which small cases allow to find by trying all."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.farm.simulated.ideal import bound, list_schedule

SPEEDS = (1.0, 1.0, 2.5, 4.0)


def best(sizes: list[float]) -> float:
    ends = []
    for rows in itertools.product(range(len(SPEEDS)), repeat=len(sizes)):
        loads = [0.0] * len(SPEEDS)
        for row, size in zip(rows, sizes, strict=True):
            loads[row] += size / SPEEDS[row]
        ends.append(max(loads))
    return min(ends)


@pytest.mark.parametrize("seed", range(5))
def test_longest_first_is_near_the_best_schedule_and_never_better(seed: int) -> None:
    sizes = [random.Random(seed).lognormvariate(0, 1) for _ in range(6)]
    assert bound(sizes, SPEEDS) <= best(sizes) <= list_schedule(sizes, SPEEDS) * (1 + 1e-9)
    assert list_schedule(sizes, SPEEDS) <= 19 / 12 * best(sizes)  # what Dobson proved of it


def test_many_jobs_keep_all_rows_at_work() -> None:
    sizes = [random.Random(0).uniform(1, 2) for _ in range(1000)]
    assert list_schedule(sizes, SPEEDS) == pytest.approx(bound(sizes, SPEEDS), rel=0.01)
