"""Speculation never changes what comes out: any draft, any depth, any company, against mlx-lm's own greedy output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from draftmill.engine.drafting.dflash import DFlashDraft, DraftConfig
from draftmill.engine.drafting.drafter import Drafter, DraftRow
from draftmill.engine.engine import Engine
from draftmill.engine.models.pairs import resolve
from draftmill.engine.models.targets import adapt
from draftmill.engine.request import Request
from draftmill.engine.schedule.row import Row
from tests.engine.models.gemma4 import gemma4_large_model, gemma4_model, gemma4_moe_model
from tests.engine.small import (
    VOCABULARY,
    NumberTokenizer,
    gemma2_model,
    gemma3_model,
    gpt_oss_model,
    lfm2_model,
    llama_model,
    memory_for,
    quantised,
    qwen2_model,
    qwen3_5_model,
    qwen3_5_moe_model,
    qwen3_model,
    qwen3_moe_model,
    qwen3_next_model,
    reference,
    requests,
    run,
    smollm3_model,
)

BLOCK = 8

BUILDERS = {
    "llama": llama_model,
    "llama-sliding": lambda: llama_model(
        layer_types=["full_attention", "sliding_attention", "sliding_attention"], sliding_window=16
    ),
    "qwen3": qwen3_model,
    "qwen3-moe": qwen3_moe_model,
    "qwen3.5": qwen3_5_model,
    "qwen3.5-moe": qwen3_5_moe_model,
    "qwen3.5-quantised": lambda: quantised(qwen3_5_model()),
}

OTHERS = {
    "gemma2": gemma2_model,
    "gemma3": gemma3_model,
    "gemma4": gemma4_model,
    "gemma4-large": gemma4_large_model,
    "gemma4-moe": gemma4_moe_model,
    "gpt-oss": gpt_oss_model,
    "lfm2": lfm2_model,
    "qwen2": qwen2_model,
    "qwen3-next": qwen3_next_model,
    "smollm3": smollm3_model,
}
"""Families that differ from one of these only in what a layer computes."""


@cache
def small_model(family: str) -> Any:
    """Made once, so that mlx-lm's continuations are computed once."""
    return {**BUILDERS, **OTHERS}[family]()


def random_draft(**changes) -> DFlashDraft:
    mx.random.seed(3)
    config = dict(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=96,
        vocab_size=VOCABULARY,
        num_target_layers=3,
        block_size=BLOCK,
        dflash_config={"mask_token_id": 5, "target_layer_ids": [0, 2]},
    )
    draft = DFlashDraft(DraftConfig.from_dict({**config, **changes}))
    mx.eval(draft.parameters())
    return draft


class Replay(Drafter):
    """Drafts known continuations instead of what its model says, wrong at the positions that `wrong` names."""

    def replay(self, texts: dict[str, list[int]], wrong: Callable[[int], bool]) -> Replay:
        padding = [0] * (BLOCK + 1)
        self.texts = {
            id: mx.array([(t + 1) % VOCABULARY if wrong(i) else t for i, t in enumerate(tokens)] + padding, mx.int32)
            for id, tokens in texts.items()
        }
        return self

    def draft_blocks(self, rows: Sequence[DraftRow], anchors: mx.array, cursors: mx.array) -> mx.array:
        super().draft_blocks(rows, anchors, cursors)  # what it writes past the cursor must not matter
        parts = [self.texts[row.request.id][cursors[row.slot] + 1 + mx.arange(row.depth)] for row in rows]
        tokens = mx.concatenate(parts)
        return tokens


def engine_with_draft(model, draft=None, max_rows=8, slots=2048, end=(), operations=None) -> Engine:
    target = adapt(model)
    if operations:
        target.operations = operations
    draft = draft or random_draft(num_target_layers=len(target.layers), hidden_size=target.hidden_size)
    memory = memory_for(target, draft, slots, max_rows)
    return Engine(target, NumberTokenizer(end), 512, max_rows, memory, draft=draft)


def replaying(model, asked: Sequence[Request], wrong: Callable[[int], bool] = lambda i: False, **options) -> Engine:
    engine = engine_with_draft(model, **options)
    texts = {request.id: [*request.tokens, *reference(model, request)] for request in asked}
    assert engine.drafter
    engine.drafter = Replay(engine.drafter.draft, engine.target, engine.pool.pages).replay(texts, wrong)
    return engine


def changing(step: int) -> Callable[[Sequence[Row], int], list[int]]:
    """Depths that differ by `step`, around the block, from one row and round to the next."""
    numbers = count()
    return lambda rows, prompt: [next(numbers) * step % BLOCK for _ in rows]


def serve_rows_that_join_and_leave(model: Any, wrong: Callable[[int], bool], **options: Any) -> None:
    """Rows of mixed depths, four at a time, each of another length."""
    asked = [
        replace(request, sampling=replace(request.sampling, max_tokens=3 + 5 * i))
        for i, request in enumerate(requests(8))
    ]
    engine = replaying(model, asked, wrong, max_rows=4, **options)
    engine.scheduler.depths = changing(5)
    done = run(engine, asked, every=2)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


def serve_ends_inside_a_block(model: Any, **options: Any) -> None:
    """Rows that end by a token or at their limit, both inside a block of drafts that are all right."""
    asked = requests(8, max_tokens=21)
    end = reference(model, asked[0])[5]
    done = run(replaying(model, asked, end=(end,), **options), asked)
    for request in asked:
        expected = reference(model, request)
        cut = expected[: expected.index(end)] if end in expected else expected
        assert list(done[request.id].tokens) == cut
        assert done[request.id].finish_reason == ("stop" if end in expected else "length")


DRAFTS: dict[str, Callable[[int], bool] | None] = {
    "random": None,
    "oracle": lambda i: False,
    "half": lambda i: i % 3 == 0,
}
ROWS = (1, 3, 8)


def pairwise(families: Iterable[str], drafts: Iterable[str] = DRAFTS) -> list[tuple[str, int, str]]:
    """A few triples of family, rows and draft: each two values of different kinds meet in one of them."""
    names, drafts = list(families), list(drafts)
    return [
        (names[i % len(names)], ROWS[(i + j) % 3], draft)
        for i in range(max(len(names), 3))
        for j, draft in enumerate(drafts)
    ]


@pytest.mark.parametrize(
    ("family", "rows", "draft"), [*pairwise(BUILDERS), *((family, 3, draft) for family in OTHERS for draft in DRAFTS)]
)
def test_greedy_equals_mlx_lm(family: str, rows: int, draft: str) -> None:
    model, asked, wrong = small_model(family), requests(8), DRAFTS[draft]
    engine = replaying(model, asked, wrong, max_rows=rows) if wrong else engine_with_draft(model, max_rows=rows)
    done = run(engine, asked)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


def test_an_oracle_fills_every_block() -> None:
    model = small_model("llama")
    asked = requests(4, max_tokens=1 + 3 * BLOCK)
    done = run(replaying(model, asked), asked)
    for request in asked:
        completion = done[request.id]
        assert (completion.rounds, completion.accepted, completion.drafted) == (3, 3 * (BLOCK - 1), 3 * (BLOCK - 1))


@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
def test_sampled_tokens_depend_neither_on_the_draft_nor_on_depths(family: str) -> None:
    model, asked = small_model(family), requests(6, temperature=0.9, top_p=0.95)
    outputs = []
    for rows, step in ((2, 0), (5, 5)):
        engine = engine_with_draft(model, max_rows=rows)
        engine.scheduler.depths = changing(step)
        outputs.append({id: done.tokens for id, done in run(engine, asked).items()})
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("family", ["qwen3", "qwen3.5"])
@pytest.mark.parametrize("wrong", [lambda i: False, lambda i: i % 4 == 1])
def test_mixed_depths_with_rows_joining_and_leaving(wrong: Callable[[int], bool], family: str) -> None:
    serve_rows_that_join_and_leave(small_model(family), wrong)


def test_end_tokens_and_limits_inside_a_block() -> None:
    serve_ends_inside_a_block(small_model("llama"))


@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
def test_tokens_per_round_do_not_depend_on_neighbours(family: str) -> None:
    model = small_model(family)
    asked = requests(8)

    def wrong(position: int) -> bool:
        return position % 5 == 2

    together = run(replaying(model, asked, wrong), asked)
    for request in asked:
        alone = run(replaying(model, asked, wrong), [request])[request.id]
        beside = together[request.id]
        assert (beside.rounds, beside.drafted, beside.accepted) == (alone.rounds, alone.drafted, alone.accepted)


def test_the_drafts_own_context_does_not_depend_on_neighbours() -> None:
    # The draft of the target's last layers' states: right now and then, so its context matters.
    model = small_model("llama")
    draft = random_draft(layer_types=["sliding_attention", "full_attention"], sliding_window=12)
    asked = requests(8, temperature=1.5)
    together = run(engine_with_draft(model, draft), asked)
    assert sum(completion.accepted for completion in together.values()) > 0
    for request in asked:
        alone = run(engine_with_draft(model, draft), [request])[request.id]
        assert alone.tokens == together[request.id].tokens
        assert alone.accepted == together[request.id].accepted


def test_growth_and_preemption_do_not_change_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.schedule.scheduler.HEADROOM", 2)
    model = small_model("llama")
    asked = requests(6, max_tokens=60, longest=30)
    engine = replaying(model, asked, lambda i: i % 4 == 0, max_rows=6, slots=170)
    done = run(engine, asked)
    assert engine.scheduler.preempted > 0
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


def test_counters_agree_with_results() -> None:
    model = small_model("llama")
    asked = requests(8, temperature=1.0)
    engine = engine_with_draft(model)
    done = run(engine, asked).values()
    assert engine.stats.drafted == sum(completion.drafted for completion in done)
    assert engine.stats.accepted == sum(completion.accepted for completion in done)
    assert engine.stats.accepted == sum(engine.stats.accepted_per_position)
    assert engine.stats.row_rounds == sum(completion.rounds for completion in done)
    assert engine.stats.generated_tokens == sum(len(completion.tokens) for completion in done)


def test_at_depth_0_the_draft_takes_no_memory_and_no_part() -> None:
    model, asked = small_model("llama"), requests(4)
    target = adapt(model)
    make = partial(Engine, target, NumberTokenizer(), 512, 4, 2**20)
    plain, engine = make(), make(random_draft(), depth=0)
    assert engine.drafter is None
    assert engine.scheduler.pages.most == plain.scheduler.pages.most > make(random_draft()).scheduler.pages.most
    done = run(engine, asked)
    for request in asked:
        completion = done[request.id]
        assert list(completion.tokens) == reference(model, request)
        assert (completion.drafted, completion.accepted) == (0, 0)
    assert (engine.stats.drafted, engine.stats.accepted_per_position) == (0, [])


def test_at_depth_0_the_draft_is_not_even_loaded(cache: Path) -> None:
    pair = replace(resolve("smollm2-135m"), draft="/nowhere")
    assert Engine.load(pair, cache, max_rows=2, memory=2**26, depth=0).drafter is None
