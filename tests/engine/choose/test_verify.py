"""Speculative sampling leaves the target's distribution as it is: chi-squared over many draws on a tiny vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from draftmill.engine.choose.sampling import choose, setting
from draftmill.engine.choose.verify import accept
from draftmill.engine.request import Sampling
from tests.kernels.choose import definition
from tests.kernels.choose.definition import chi_squared

VOCABULARY, DRAWS = 6, 20_000

SETTINGS: list[dict[str, Any]] = [
    dict(temperature=1.0),
    dict(temperature=0.5),
    dict(temperature=1.7, top_k=3),
    dict(temperature=1.0, top_p=0.8),
    dict(temperature=0.8, top_k=4, top_p=0.9),
]


def probabilities(logits: mx.array, sampling: Sampling) -> np.ndarray:
    """Of the tokens of each row of logits [M, V]: [M, V]."""
    return np.array([definition.probabilities(row, setting(sampling)) for row in np.array(logits)])


@pytest.mark.parametrize("parameters", SETTINGS, ids=str)
@pytest.mark.parametrize("draft", ["close", "far", "same"])
def test_emitted_tokens_are_distributed_as_the_target(parameters: dict[str, Any], draft: str) -> None:
    mx.random.seed(11)
    target = 1.5 * mx.random.normal((3, VOCABULARY))  # logits of the three slots, whatever came before
    noise = {"close": 0.5, "far": 3.0, "same": 0.0}[draft]
    drafting = target[:2] + noise * mx.random.normal((2, VOCABULARY))
    samplings = [Sampling(seed=seed, **parameters) for seed in range(DRAWS)]
    positions = mx.full((DRAWS,), 17, mx.int32)
    twice = [sampling for sampling in samplings for _ in range(2)]
    drafted = choose(mx.tile(drafting, (DRAWS, 1)), twice, mx.tile(mx.array([17, 18]), DRAWS))
    tokens, counts = accept(mx.tile(target, (DRAWS, 1)), drafted, [2] * DRAWS, samplings, positions)
    p = probabilities(target, Sampling(**parameters))
    tokens, counts = np.array(tokens), np.array(counts)
    for slot in range(3):
        # Whether a slot is reached does not depend on what it then emits.
        reached = tokens[counts > slot, slot]
        if len(reached) > 1000:
            value, bound = chi_squared(reached, p[slot])
            assert value < bound, (slot, value, bound)
    if draft == "same":
        assert (counts == 3).all()


@pytest.mark.parametrize("parameters", SETTINGS, ids=str)
def test_plain_sampling_has_the_same_distribution(parameters: dict[str, Any]) -> None:
    mx.random.seed(12)
    target = 1.5 * mx.random.normal((1, VOCABULARY))
    samplings = [Sampling(seed=seed, **parameters) for seed in range(DRAWS)]
    tokens, counts = accept(mx.tile(target, (DRAWS, 1)), None, [0] * DRAWS, samplings, mx.full((DRAWS,), 3, mx.int32))
    assert (np.array(counts) == 1).all()
    value, bound = chi_squared(np.array(tokens)[:, 0], probabilities(target, Sampling(**parameters))[0])
    assert value < bound


def test_truncation_keeps_the_likeliest() -> None:
    logits = mx.log(mx.array([[0.4, 0.3, 0.2, 0.1]]))
    kept = [
        (Sampling(temperature=1.0, top_k=2), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0]),
        (Sampling(temperature=1.0, top_p=0.01), [1, 0, 0, 0]),
        (Sampling(temperature=1.0, top_k=3, top_p=0.7), [4 / 7, 3 / 7, 0, 0]),
    ]
    for sampling, expected in kept:
        assert np.allclose(probabilities(logits, sampling)[0], expected, atol=1e-5)
        samplings = [replace(sampling, seed=seed) for seed in range(2000)]
        tokens = np.array(choose(mx.tile(logits, (2000, 1)), samplings, mx.full((2000,), 5)))
        value, bound = chi_squared(tokens, np.array(expected))
        assert value < bound


def test_greedy_rows_beside_sampled_ones_take_the_target_s_choice() -> None:
    logits = mx.array([[0.0, 5.0, 1.0], [4.0, 0.0, 1.0], [0.0, 0.0, 9.0]] * 2)
    samplings = [Sampling(), Sampling(temperature=0.01, seed=1)]
    drafted = mx.array([1, 2, 1, 2], mx.int32)
    tokens, counts = accept(logits, drafted, [2, 2], samplings, mx.array([5, 5], mx.int32))
    assert counts.tolist() == [2, 2]
    assert tokens[:, :2].tolist() == [[1, 0], [1, 0]]


def test_what_a_row_emits_depends_neither_on_drafts_nor_on_depth() -> None:
    mx.random.seed(3)
    logits = 2 * mx.random.normal((4, VOCABULARY))
    own: Any = choose(logits, [Sampling(temperature=1.0, seed=9)] * 4, mx.array([30, 31, 32, 33])).tolist()
    emitted: list[int] = []
    for depth, drafts in ((2, [own[0], (own[1] + 1) % VOCABULARY]), (1, [own[2]])):
        slots = logits[len(emitted) : len(emitted) + depth + 1]
        given = mx.array(drafts, mx.int32)
        tokens, counts = accept(
            slots, given, [depth], [Sampling(temperature=1.0, seed=9)], mx.array([30 + len(emitted)])
        )
        row: Any = tokens[0].tolist()
        (length,) = np.array(counts)
        emitted += row[:length]
    assert emitted == own


@pytest.mark.parametrize(("noise", "least"), [(0.1, 0.9), (0.5, 0.6)])
def test_draws_of_similar_distributions_mostly_agree(noise: float, least: float) -> None:
    mx.random.seed(5)
    target = 1.5 * mx.random.normal((1, 1000))
    drafting = target + noise * mx.random.normal((1, 1000))
    samplings, positions = [Sampling(temperature=1.0, seed=seed) for seed in range(2000)], mx.full((2000,), 7)
    p, q = (probabilities(logits, Sampling(temperature=1.0)) for logits in (target, drafting))
    overlap = float(np.minimum(p, q).sum())
    drawn = [choose(mx.tile(logits, (2000, 1)), samplings, positions) for logits in (target, drafting)]
    agreed = float((drawn[0] == drawn[1]).mean())
    assert overlap / (2 - overlap) - 0.03 < agreed <= overlap + 0.03
    assert agreed > least
