"""What looks at few tokens of a vocabulary, against what looks at all of them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from draftmill.kernels.choose.best import CHUNK, best
from draftmill.kernels.choose.noise import gumbel, gumbel_of


@pytest.mark.parametrize("vocabulary", [2, 7, 96, 97, 1000, 5003])
def test_the_noise_of_few_tokens_is_theirs_among_all(vocabulary: int) -> None:
    mx.random.seed(1)
    seeds = mx.array([0, 1, 0xFFFFFFFF, 7], mx.uint32)
    positions = mx.array([0, 5, 2**31 - 1, 12345], mx.int32)
    ends = mx.array([0, vocabulary // 2 - 1, vocabulary // 2, vocabulary - 1], mx.int32)
    tokens = mx.concatenate([mx.random.randint(0, vocabulary, (4, 12)), mx.tile(ends, (4, 1))], axis=1)
    expected = mx.take_along_axis(gumbel(seeds, positions, vocabulary), tokens, axis=-1)
    assert np.allclose(np.array(gumbel_of(tokens, seeds, positions, vocabulary)), np.array(expected), atol=1e-5)


@pytest.mark.parametrize("vocabulary", [16, 100, 16 * CHUNK, 16 * CHUNK + 1, 40 * CHUNK, 5003])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_the_best_are_those_that_a_sort_puts_last(vocabulary: int, dtype: mx.Dtype) -> None:
    mx.random.seed(2)
    logits = (3 * mx.random.normal((5, vocabulary))).astype(dtype)
    logits[1] = mx.arange(vocabulary)  # all of them side by side
    logits[2, vocabulary - 3 :] = 50
    tokens, values = best(logits, 16)
    assert mx.array_equal(values, mx.take_along_axis(logits, tokens, axis=-1))
    # Of equal ones, any will do.
    assert mx.array_equal(mx.sort(values, axis=-1), mx.sort(logits, axis=-1)[:, -16:])
    assert all(len(set(row)) == 16 for row in np.array(tokens).tolist())


@pytest.mark.parametrize("value", [-mx.inf, mx.nan])
def test_of_what_is_no_number_the_best_are_tokens_all_the_same(value: float) -> None:
    tokens, _ = best(mx.full((2, 20 * CHUNK - 5), value), 16)
    assert 0 <= np.array(tokens).min() <= np.array(tokens).max() < 20 * CHUNK - 5
