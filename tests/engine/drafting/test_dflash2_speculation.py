"""DFlash 2 drafts never change what comes out: whatever they say, in any company, as with DFlash's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from draftmill.engine.drafting.dflash import DFlashDraft
from draftmill.engine.models.targets import adapt
from tests.engine.small import reference, requests, run, small_engine

from .dflash2 import NESTED, random_draft
from .test_speculation import (
    BLOCK,
    DRAFTS,
    changing,
    engine_with_draft,
    pairwise,
    replaying,
    serve_ends_inside_a_block,
    serve_rows_that_join_and_leave,
    small_model,
)


def draft_for(model: Any, **changes: Any) -> DFlashDraft:
    target = adapt(model)
    sizes = dict(num_target_layers=len(target.layers), hidden_size=target.hidden_size)
    return random_draft(**sizes, dflash_config={**NESTED, "block_size": BLOCK}, **changes)


@pytest.mark.parametrize(("family", "rows", "kind"), pairwise(["llama", "qwen3.5"]))
def test_greedy_equals_mlx_lm(family: str, rows: int, kind: str) -> None:
    model, asked, wrong = small_model(family), requests(8), DRAFTS[kind]
    draft = draft_for(model)
    engine = (
        replaying(model, asked, wrong, max_rows=rows, draft=draft)
        if wrong
        else engine_with_draft(model, draft, max_rows=rows)
    )
    done = run(engine, asked)
    assert engine.stats.drafted > 0
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
@pytest.mark.parametrize("wrong", [lambda i: False, lambda i: i % 4 == 1])
def test_mixed_depths_with_rows_joining_and_leaving(wrong: Callable[[int], bool], family: str) -> None:
    model = small_model(family)
    serve_rows_that_join_and_leave(model, wrong, draft=draft_for(model))


def test_ends_inside_a_block() -> None:
    model = small_model("llama")
    serve_ends_inside_a_block(model, draft=draft_for(model))


@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
def test_sampled_tokens_depend_neither_on_the_draft_nor_on_depths(family: str) -> None:
    model, asked = small_model(family), requests(6, temperature=0.9, top_p=0.95)
    outputs = []
    for draft, rows, step in ((draft_for(model), 2, 0), (draft_for(model), 5, 5), (None, 3, 3)):
        engine = engine_with_draft(model, draft, max_rows=rows)
        engine.scheduler.depths = changing(step)
        outputs.append({id: done.tokens for id, done in run(engine, asked).items()})
    assert outputs[0] == outputs[1] == outputs[2]


def test_its_context_and_blocks_do_not_depend_on_neighbours() -> None:
    model = small_model("llama")
    draft = draft_for(model, layer_types=["sliding_attention", "full_attention"], sliding_window=12)
    asked = requests(8, temperature=1.5)
    together = run(engine_with_draft(model, draft), asked)
    assert sum(completion.accepted for completion in together.values()) > 0
    for request in asked:
        alone = run(engine_with_draft(model, draft), [request])[request.id]
        beside = together[request.id]
        assert (alone.tokens, alone.accepted) == (beside.tokens, beside.accepted)


def test_rows_that_change_logits_stay_exact() -> None:
    model = small_model("llama")
    asked = requests(6, repetition_penalty=1.4, logit_bias=((7, 3.0),))
    engine = engine_with_draft(model, draft_for(model))
    drafted, plain = run(engine, asked), run(small_engine(model), asked)
    assert engine.stats.drafted > 0
    assert {id: done.tokens for id, done in drafted.items()} == {id: done.tokens for id, done in plain.items()}
