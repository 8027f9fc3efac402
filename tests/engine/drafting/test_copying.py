"""Rows that draft from their own text, alone and beside rows that a draft writes for: the target's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any

import mlx.core as mx
import pytest

from draftmill.engine.depth.budget import Budget
from draftmill.engine.drafting.suffix import MOST
from draftmill.engine.engine import Engine
from draftmill.engine.models.targets import adapt
from draftmill.engine.request import Origin, Request, Sampling
from draftmill.engine.schedule.row import FROM_DRAFT, Row
from tests.engine.depth.simulation import M5_MAX
from tests.engine.drafting.test_speculation import BLOCK, BUILDERS, OTHERS, random_draft, small_model
from tests.engine.small import NumberTokenizer, llama_model, memory_for, reference, requests, run

COPIED = FROM_DRAFT + 1


@cache
def looping_model() -> Any:
    """What it says depends on its last token alone, so it soon repeats itself."""
    model = llama_model()
    for layer in model.layers:
        layer.self_attn.o_proj.weight = mx.zeros_like(layer.self_attn.o_proj.weight)
    return model


def engine_that_copies(model: Any, max_rows: int = 8, draft: bool = False, end: int = -1) -> Engine:
    target = adapt(model)
    drafting = random_draft(num_target_layers=len(target.layers), hidden_size=target.hidden_size) if draft else None
    memory = memory_for(target, drafting, 2048, max_rows, copying=True)
    return Engine(target, NumberTokenizer((end,)), 512, max_rows, memory, drafting, copying=True)


def always(depth: int) -> Callable[[Sequence[Row], int], list[int]]:
    """Every row copies so many tokens."""

    def depths(rows: Sequence[Row], prompt: int) -> list[int]:
        for row in rows:
            row.kind = COPIED
        return [depth] * len(rows)

    return depths


def mixed() -> Callable[[Sequence[Row], int], list[int]]:
    """Depths and kinds that change from row to row and from round to round."""
    numbers = count()

    def depths(rows: Sequence[Row], prompt: int) -> list[int]:
        chosen: list[int] = []
        for row, number in zip(rows, numbers, strict=False):
            row.kind = COPIED if number % 3 else FROM_DRAFT
            chosen.append(number * 5 % (1 + MOST if number % 3 else BLOCK))
        return chosen

    return depths


@pytest.mark.parametrize("family", [*BUILDERS, *OTHERS])
def test_greedy_equals_mlx_lm(family: str) -> None:
    asked = requests(6, max_tokens=40)
    engine = engine_that_copies(small_model(family), 4)
    engine.scheduler.depths = always(MOST)
    done = run(engine, asked)
    for request in asked:
        assert list(done[request.id].tokens) == reference(small_model(family), request)
    assert engine.stats.accepted > 0


@pytest.mark.parametrize("family", ["qwen3", "qwen3.5", "gemma3"])
def test_rows_that_copy_beside_rows_that_a_draft_writes_for(family: str) -> None:
    asked = [
        replace(request, sampling=replace(request.sampling, max_tokens=9 + 7 * i))
        for i, request in enumerate(requests(8))
    ]
    engine = engine_that_copies(small_model(family), 4, draft=True)
    engine.scheduler.depths = mixed()
    done = run(engine, asked, every=2)
    for request in asked:
        assert list(done[request.id].tokens) == reference(small_model(family), request)


def test_sampled_tokens_do_not_depend_on_the_source() -> None:
    asked = requests(6, max_tokens=40, temperature=0.7, top_p=0.9)
    outputs: list[dict[str, tuple[int, ...]]] = []
    for depths in (always(0), always(MOST), mixed()):
        engine = engine_that_copies(small_model("llama"), 5, draft=True)
        engine.scheduler.depths = depths
        outputs.append({id: done.tokens for id, done in run(engine, asked).items()})
    assert outputs[0] == outputs[1] == outputs[2]


def test_ends_and_limits_inside_a_copy() -> None:
    model, asked = small_model("llama"), requests(8, max_tokens=60)
    end = reference(model, asked[0])[30]
    engine = engine_that_copies(model, end=end)
    engine.scheduler.depths = always(MOST)
    done = run(engine, asked)
    for request in asked:
        expected = reference(model, request)
        assert list(done[request.id].tokens) == (expected[: expected.index(end)] if end in expected else expected)


def test_growth_and_preemption_do_not_change_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.schedule.scheduler.HEADROOM", 2)
    asked = requests(6, max_tokens=60, longest=30)
    target = adapt(small_model("llama"))
    engine = Engine(target, NumberTokenizer(), 512, 6, memory_for(target, None, 240, 6, copying=True), copying=True)
    engine.scheduler.depths = always(MOST)
    done = run(engine, asked)
    assert engine.scheduler.preempted > 0
    for request in asked:
        assert list(done[request.id].tokens) == reference(small_model("llama"), request)


def test_a_shared_prefix_is_copied_from() -> None:
    """What a row did not prefill itself is in its text all the same."""
    model, (base, *_) = small_model("llama"), requests(1, longest=3)
    text = (*base.tokens, *reference(model, replace(base, sampling=Sampling(200))))
    asked = [Request(f"r{i}", (*text, *text[:i]), Sampling(30)) for i in range(3, 9)]
    engine = engine_that_copies(model, 1)
    engine.scheduler.depths = always(MOST)
    done = run(engine, asked)
    assert done["r8"].cached_tokens > 0
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)
    fresh = engine_that_copies(model, 1)
    fresh.scheduler.depths = always(MOST)
    assert run(fresh, [asked[-1]])["r8"].accepted == done["r8"].accepted


@pytest.mark.parametrize("draft", [False, True])
def test_a_budget_lets_rows_copy_where_it_pays(draft: bool) -> None:
    model, asked = looping_model(), requests(4, max_tokens=200)
    engine = engine_that_copies(model, draft=draft)
    engine.spend(Budget(M5_MAX.measure(8, noise=0.02), BLOCK if draft else 1, copying=True))
    done = run(engine, asked)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)
    assert engine.stats.accepted > engine.stats.generated_tokens / 2


def test_a_budget_soon_lets_be_what_does_not_pay() -> None:
    """A model that says anything after anything: what stood behind the same three tokens does not come again."""
    asked = [replace(r, tokens=r.tokens * 9) for r in requests(4, max_tokens=200, temperature=20.0)]
    engine = engine_that_copies(small_model("llama"))
    engine.spend(Budget(M5_MAX.measure(8, noise=0.02), 1, copying=True))
    run(engine, asked)
    assert engine.stats.drafted < engine.stats.generated_tokens / 4


@pytest.mark.parametrize("budget", [True, False])
def test_rows_draft_from_the_sources_that_their_requests_allow(budget: bool) -> None:
    model = looping_model()
    allowed: list[tuple[Origin, ...] | None] = [None, ("lookup",), ("dflash",), ("mtp",), ()]
    for drafts in allowed:
        asked = [replace(request, drafts=drafts) for request in requests(4, max_tokens=120)]
        engine = engine_that_copies(model, 4, draft=True)
        if budget:
            engine.spend(Budget(M5_MAX.measure(8, noise=0.02), BLOCK, copying=True))
        done = run(engine, asked)
        assert all(list(done[request.id].tokens) == reference(model, request) for request in asked)
        of_draft, copied = engine.stats.drafted_by["dflash"], engine.stats.drafted_by["lookup"]
        assert (copied > 0) == (budget and drafts in (None, ("lookup",)))
        assert of_draft > 0 if drafts == ("dflash",) else drafts is None or not of_draft
