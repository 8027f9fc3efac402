"""DSpark drafts never change what comes out: whatever they say, in any company, as with DFlash's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from draftmill.engine.drafting.dspark import DSparkDraft
from draftmill.engine.models.targets import adapt
from tests.engine.small import reference, requests, run, small_engine

from .dspark import FEWER, NESTED, SPECULATORS, loaded, random_weights
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

DEEPEST = BLOCK - 1
"""What the replayed drafts are deep."""


@pytest.fixture
def draft_for(tmp_path: Path) -> Callable[..., DSparkDraft]:
    """A draft for a model: of all its tokens, whose anchor's slot drafts, or of few tokens, with windows."""

    def made(model: Any, kind: str = "vanilla", few: bool = False) -> DSparkDraft:
        target = adapt(model)
        layers, hidden = len(target.layers), target.hidden_size
        if few:
            layer = {**SPECULATORS["transformer_layer_config"], "hidden_size": hidden}
            config = {**SPECULATORS, "block_size": DEEPEST, "markov_head_type": kind, "transformer_layer_config": layer}
            return loaded(tmp_path / kind, config, random_weights(kind, "embedding, head", FEWER, hidden))
        nested = {**NESTED["dflash_config"], "num_target_layers": layers, "markov_head_type": kind}
        config = {**NESTED, "hidden_size": hidden, "block_size": DEEPEST, "dflash_config": nested}
        return loaded(tmp_path / kind, config, random_weights(kind, hidden=hidden))

    return made


@pytest.mark.parametrize(("family", "rows", "kind"), pairwise(["llama", "qwen3.5", "lfm2"]))
def test_greedy_equals_mlx_lm(family: str, rows: int, kind: str, draft_for: Callable[..., DSparkDraft]) -> None:
    model, asked, wrong = small_model(family), requests(8), DRAFTS[kind]
    draft = draft_for(model, few=rows == 3)
    engine = (
        replaying(model, asked, wrong, max_rows=rows, draft=draft)
        if wrong
        else engine_with_draft(model, draft, max_rows=rows)
    )
    done = run(engine, asked)
    assert engine.stats.drafted > 0
    if rows == 1 and kind == "oracle":
        assert max(completion.accepted for completion in done.values()) >= DEEPEST
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
@pytest.mark.parametrize("wrong", [lambda i: False, lambda i: i % 4 == 1])
def test_mixed_depths_with_rows_joining_and_leaving(
    wrong: Callable[[int], bool], family: str, draft_for: Callable[..., DSparkDraft]
) -> None:
    model = small_model(family)
    serve_rows_that_join_and_leave(model, wrong, draft=draft_for(model, "rnn"))


def test_ends_inside_a_block(draft_for: Callable[..., DSparkDraft]) -> None:
    model = small_model("llama")
    serve_ends_inside_a_block(model, draft=draft_for(model))


@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
def test_sampled_tokens_depend_neither_on_the_draft_nor_on_depths(
    family: str, draft_for: Callable[..., DSparkDraft]
) -> None:
    model, asked = small_model(family), requests(6, temperature=0.9, top_p=0.95)
    drafts = draft_for(model, "gated"), draft_for(model, "vanilla", few=True)
    outputs = []
    for draft, rows, step in ((drafts[0], 2, 0), (drafts[1], 5, 5), (None, 3, 3)):
        engine = engine_with_draft(model, draft, max_rows=rows)
        engine.scheduler.depths = changing(step)
        outputs.append({id: done.tokens for id, done in run(engine, asked).items()})
    assert outputs[0] == outputs[1] == outputs[2]


def test_its_context_and_blocks_do_not_depend_on_neighbours(draft_for: Callable[..., DSparkDraft]) -> None:
    model = small_model("llama")
    asked = requests(8, temperature=1.5)
    together = run(engine_with_draft(model, draft_for(model, few=True)), asked)
    assert sum(completion.accepted for completion in together.values()) > 0
    for request in asked:
        alone = run(engine_with_draft(model, draft_for(model, few=True)), [request])[request.id]
        beside = together[request.id]
        assert (alone.tokens, alone.accepted) == (beside.tokens, beside.accepted)


@pytest.mark.parametrize("few", [False, True])
def test_rows_that_change_logits_stay_exact(few: bool, draft_for: Callable[..., DSparkDraft]) -> None:
    model = small_model("llama")
    asked = requests(6, repetition_penalty=1.4, logit_bias=((7, 3.0),))
    engine = engine_with_draft(model, draft_for(model, few=few))
    drafted, plain = run(engine, asked), run(small_engine(model), asked)
    assert engine.stats.drafted > 0
    assert {id: done.tokens for id, done in drafted.items()} == {id: done.tokens for id, done in plain.items()}
