"""Chains of candidates: greedy ones by the definition, sampled ones in distribution, and both as the target draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from draftmill.engine.choose.change import Change, Slot
from draftmill.engine.choose.sampling import choose, setting
from draftmill.engine.drafting.dflash import Wanted
from draftmill.engine.drafting.dflash2 import DFlash2Draft
from draftmill.engine.request import Sampling
from tests.engine.small import VOCABULARY
from tests.kernels.choose import definition
from tests.kernels.choose.definition import chi_squared

from .dflash2 import CONFIG, NESTED, Definition, random_draft

DRAWS, AT_ONCE = 10_000, 1000
"""A GPU cannot choose for all draws at once."""

SETTINGS: list[dict[str, Any]] = [
    dict(temperature=1.0),
    dict(temperature=0.5),
    dict(temperature=1.7, top_k=3),
    dict(temperature=1.0, top_p=0.8),
    dict(temperature=1.3, min_p=0.2),
    dict(temperature=0.8, top_k=4, top_p=0.9),
]


def draft_of(candidates: int) -> DFlash2Draft:
    draft: Any = random_draft(dflash_config={**NESTED, "selector_top_k": candidates})
    return draft


def wanted(
    rows: Sequence[Sampling], depth: int, logits: mx.array, hidden: mx.array, slots: Sequence[Slot] = ()
) -> Wanted:
    """The same block for each row: logits [depth, vocabulary], hidden states [depth, hidden]; anchor 11, cursor 30."""
    count = len(rows)
    positions = mx.tile(31 + mx.arange(depth, dtype=mx.int32), count)
    samplings = [row for row in rows for _ in range(depth)]
    states, scores = (mx.tile(x, (count, 1)) for x in (hidden, logits))
    return Wanted(states, scores, positions, samplings, slots, [depth] * count, mx.full((count,), 11, mx.int32))


def random_block(depth: int) -> tuple[mx.array, mx.array]:
    mx.random.seed(21)
    return 3 * mx.random.normal((depth, VOCABULARY)), mx.random.normal((depth, 64))


def test_greedy_chains_of_ragged_rows() -> None:
    draft = draft_of(7)
    by_definition = Definition(draft, CONFIG)
    depths, (logits, hidden) = [1, 5, 3], random_block(9)
    anchors = [9, 11, 40]
    greedy = [Sampling()] * 9
    chosen = draft.choose(Wanted(hidden, logits, mx.arange(9), greedy, (), depths, mx.array(anchors)))
    expected: list[int] = []
    for depth, anchor in zip(depths, anchors, strict=True):
        slots = slice(len(expected), len(expected) + depth)
        expected += by_definition.chain(np.array(hidden)[slots], np.array(logits)[slots], anchor)
    assert np.array(chosen).tolist() == expected
    likeliest: Any = mx.argmax(logits, axis=-1).tolist()
    assert expected != likeliest  # the chain matters


@pytest.mark.parametrize("parameters", SETTINGS, ids=str)
def test_drafts_are_distributed_as_their_scores_say(parameters: dict[str, Any]) -> None:
    """Independent draws of z-lab's kind: each token by the softmax of its scores after the token before it."""
    draft, (logits, hidden) = draft_of(5), random_block(2)
    by_definition = Definition(draft, {**CONFIG, "dflash_config": {**NESTED, "selector_top_k": 5}})
    rows = [Sampling(seed=seed, **parameters) for seed in range(DRAWS)]
    some = (rows[begin : begin + AT_ONCE] for begin in range(0, DRAWS, AT_ONCE))
    drafted = np.concatenate([np.array(draft.choose(wanted(r, 2, logits, hidden))) for r in some]).reshape(DRAWS, 2)
    checked = 0
    for slot, before, tokens in [
        (0, 11, drafted[:, 0]),
        *((1, int(first), drafted[drafted[:, 0] == first, 1]) for first in np.unique(drafted[:, 0])),
    ]:
        if len(tokens) < 1000:
            continue
        scores = by_definition.scores(np.array(hidden)[slot], np.array(logits)[slot], before)
        p = np.zeros(VOCABULARY)
        p[list(scores)] = definition.probabilities(np.array(list(scores.values())), setting(rows[0]))
        value, bound = chi_squared(tokens, p)
        assert value < bound, (slot, before)
        checked += 1
    assert checked > 1


@pytest.mark.parametrize("parameters", [{}, *SETTINGS], ids=str)
def test_with_scores_like_the_target_s_logits_it_draws_what_the_target_draws(parameters: dict[str, Any]) -> None:
    """Without codes the scores are the logits; all tokens are candidates. Rows of all kinds lie side by side."""
    draft, (logits, hidden) = draft_of(VOCABULARY), random_block(3)
    draft.candidate_selector.predecessor_codebook *= 0
    kinds = [Sampling(), Sampling(temperature=1.0, seed=1), Sampling(temperature=1e-6, seed=2)]
    rows = [*kinds, *(Sampling(seed=1000 * seed, **parameters) for seed in range(200))]
    block = wanted(rows, 3, logits, hidden)
    expected = choose(block.logits, block.samplings, block.positions)
    assert float((draft.choose(block) == expected).mean()) > 0.999  # but for draws at the edge of top-p


def test_few_candidates_agree_with_a_target_that_keeps_fewer() -> None:
    draft, (logits, hidden) = draft_of(5), random_block(3)
    draft.candidate_selector.predecessor_codebook *= 0
    rows = [Sampling(temperature=2.0, top_k=4, seed=seed) for seed in range(200)]
    block = wanted(rows, 3, logits, hidden)
    expected = choose(block.logits, block.samplings, block.positions)
    assert mx.array_equal(draft.choose(block), expected)
    assert len(set(np.array(expected).tolist())) > 6


def test_candidates_are_those_of_logits_that_a_row_changes() -> None:
    draft, (logits, hidden) = draft_of(5), random_block(2)
    bias = mx.full((VOCABULARY,), -mx.inf)
    bias[mx.array([3, 60])] = 0
    rows = [Sampling(), Sampling(temperature=1.0, seed=4)]
    free = draft.choose(wanted(rows, 2, logits, hidden))
    slots = [Slot(), Slot(), Slot(Change(bias)), Slot(Change(bias))]
    some = draft.choose(wanted(rows, 2, logits, hidden, slots))
    assert mx.array_equal(some[:2], free[:2])
    assert set(np.array(some[2:]).tolist()) <= {3, 60}


def test_half_precision_scores_in_float32() -> None:
    draft, (logits, hidden) = draft_of(7), random_block(4)
    draft.set_dtype(mx.bfloat16)
    exact = draft_of(7)
    exact.update(draft.parameters())
    exact.set_dtype(mx.float32)
    logits, hidden = (x.astype(mx.bfloat16) for x in (logits, hidden))
    chosen = draft.choose(wanted([Sampling()], 4, logits, hidden))
    states = (np.array(x.astype(mx.float32)) for x in (hidden, logits))
    assert np.array(chosen).tolist() == Definition(exact, CONFIG).chain(*states, 11)
