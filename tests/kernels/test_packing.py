"""Which rounds are even enough to attend as one rectangle."""

from __future__ import annotations

import mlx.core as mx
import pytest

from draftmill.kernels.packing import Packing, Span


@pytest.mark.parametrize(
    ("spans", "even"),
    [
        ([(1, 200)], False),  # nothing to put together
        ([(1, 100), (1, 300)], True),
        ([(1, 100), (1, 100), (1, 900)], False),  # padded keys
        ([(8, 100), (1, 100), (1, 100)], False),  # padded queries
        ([(8, 100), (1, 100), (8, 100), (1, 100)], True),
        ([(33, 100), (33, 100)], False),  # prompts, where calls cost little beside the scores
    ],
)
def test_a_rectangle_may_have_twice_the_scores(spans: list[tuple[int, int]], even: bool) -> None:
    made = [Span(0, count, range(16), length) for count, length in spans]
    assert Packing.of(made, mx.zeros(sum(count for count, _ in spans), mx.int32)).even is even
