"""Shared prefixes are prefilled once, and nobody can tell from what comes out."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from draftmill.engine.engine import Engine
from draftmill.engine.request import EngineFailed, Request, Sampling
from draftmill.engine.schedule.pages import Pages
from draftmill.engine.schedule.prefix import PrefixCache
from draftmill.engine.schedule.prefix_tree import PrefixTree
from tests.engine.drafting.test_speculation import engine_with_draft, pairwise, random_draft, replaying
from tests.engine.models.gemma4 import gemma4_model
from tests.engine.small import (
    VOCABULARY,
    lfm2_model,
    llama_model,
    qwen3_5_model,
    qwen3_model,
    reference,
    run,
    small_engine,
)

BUILDERS = {
    "llama": llama_model,
    "llama-sliding": lambda: llama_model(
        layer_types=["full_attention", "sliding_attention", "sliding_attention"], sliding_window=16
    ),
    "qwen3": qwen3_model,
    "qwen3.5": qwen3_5_model,
}

OTHERS = {"gemma4": gemma4_model, "lfm2": lfm2_model}
"""Families that differ from one of these only in what is kept of a prefix."""


@cache
def small_model(family: str) -> Any:
    """Made once, so that mlx-lm's continuations are computed once."""
    return {**BUILDERS, **OTHERS}[family]()


def text(draw: random.Random, length: int) -> tuple[int, ...]:
    return tuple(draw.randrange(VOCABULARY) for _ in range(length))


@cache
def prompts() -> tuple[tuple[int, ...], ...]:
    """Two templates that begin alike, a longer one inside the first; a prompt that others begin with, one asked twice,
    and one that is alone."""
    draw = random.Random(7)
    header = text(draw, 100)
    first, second = header + text(draw, 50), header + text(draw, 35)
    inner = first + text(draw, 145)
    ends = [text(draw, draw.randint(1, 9)) for _ in range(12)]
    shared = [first + end for end in ends[:3]] + [inner + end for end in ends[3:6]] + [second + e for e in ends[6:10]]
    return (*shared, first, first + ends[0] + ends[1], shared[4], text(draw, 30), first[:70])


def asked(max_tokens: int = 12) -> list[Request]:
    return [Request(f"r{n}", p, Sampling(max_tokens=max_tokens, seed=n)) for n, p in enumerate(prompts())]


def check(engine: Engine, model: Any, requests: list[Request], every: int = 0) -> None:
    done = run(engine, requests, every)
    for request in requests:
        assert list(done[request.id].tokens) == reference(model, request), request.id
    assert engine.stats.cached_tokens == sum(completion.cached_tokens for completion in done.values())
    engine.scheduler.prefixes.clear()
    assert engine.scheduler.pages.free == engine.scheduler.pages.most


DRAFTS = ("none", "random", "half")


@pytest.mark.parametrize(
    ("family", "rows", "draft"),
    [*pairwise(BUILDERS, DRAFTS), *((family, 3, draft) for family in OTHERS for draft in DRAFTS)],
)
def test_greedy_equals_mlx_lm(family: str, rows: int, draft: str) -> None:
    model, requests = small_model(family), asked()
    if draft == "none":
        engine = small_engine(model, max_rows=rows)
    elif draft == "random":
        engine = engine_with_draft(model, max_rows=rows)
    else:
        engine = replaying(model, requests, lambda i: i % 3 == 0, max_rows=rows)
    check(engine, model, requests)
    assert engine.stats.cached_tokens > 600
    assert engine.stats.prefilled_tokens + engine.stats.cached_tokens == sum(len(prompt) for prompt in prompts())


@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
@pytest.mark.parametrize("every", [1, 3])
def test_rows_joining_and_leaving(family: str, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.schedule.scheduler.PREFILL_TOKENS", 29)
    model = small_model(family)
    requests = [replace(r, sampling=replace(r.sampling, max_tokens=2 + n)) for n, r in enumerate(asked())]
    engine = replaying(model, requests, lambda i: i % 4 == 1, max_rows=4)
    check(engine, model, requests, every)
    assert engine.stats.cached_tokens > 300


@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
def test_snapshots_that_give_way(family: str) -> None:
    model = small_model(family)
    requests = asked()
    engine = engine_with_draft(model, max_rows=2)
    engine.scheduler.prefixes.most = 1
    check(engine, model, requests + [replace(r, id=f"again {r.id}") for r in requests])
    assert engine.stats.cached_tokens > 0


@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
def test_growth_and_preemption(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.schedule.scheduler.HEADROOM", 2)
    model = small_model(family)
    requests = asked(max_tokens=40)
    engine = replaying(model, requests, lambda i: i % 4 == 0, max_rows=6, slots=420)
    check(engine, model, requests)
    assert engine.scheduler.preempted > 0
    assert engine.stats.cached_tokens > 0


def test_the_drafts_own_context_is_copied_too() -> None:
    model = small_model("llama")
    draft = random_draft(layer_types=["sliding_attention", "full_attention"], sliding_window=12)
    requests = [replace(r, sampling=replace(r.sampling, temperature=1.5)) for r in asked(max_tokens=40)]
    shared = run(engine_with_draft(model, draft, max_rows=2), requests)
    apart = engine_with_draft(model, draft, max_rows=2)
    apart.scheduler.prefixes.most = 0
    for id, completion in run(apart, requests).items():
        assert completion.cached_tokens == 0
        assert (completion.tokens, completion.accepted) == (shared[id].tokens, shared[id].accepted)
    assert sum(completion.accepted for completion in shared.values()) > 0


@pytest.mark.parametrize("family", ["qwen3", "qwen3.5"])
def test_a_template_is_prefilled_once(family: str) -> None:
    draw = random.Random(3)
    template = text(draw, 300)
    requests = [
        Request(f"r{n}", template + text(draw, draw.randint(4, 20)), Sampling(max_tokens=1 + n % 3)) for n in range(200)
    ]
    engine = small_engine(small_model(family), max_rows=16, slots=16 * 512)
    run(engine, requests)
    whole = 256  # the template's tokens that fill pages
    least = whole + sum(len(request.tokens) - whole for request in requests)
    assert least <= engine.stats.prefilled_tokens <= 1.05 * least
    assert engine.stats.prompt_tokens == engine.stats.prefilled_tokens + engine.stats.cached_tokens


def test_requests_that_come_one_by_one_share_too() -> None:
    model = small_model("llama")
    engine = small_engine(model)
    cached = [run(engine, [request])[request.id].cached_tokens for request in asked()[:3]]
    assert cached == [0, 0, 128]  # the second shows what is shared


def test_a_cancelled_row_leaves_its_prefix_to_others() -> None:
    model = small_model("qwen3.5")
    engine = small_engine(model, max_rows=4)
    engine.scheduler.prefill_tokens = 16
    first, *others = asked()[:5]
    for request in [first, *others]:
        engine.add(request)
    engine.step()
    (row,) = engine.scheduler.rows
    engine.cancel(row.request.id)
    done = run(engine, [])
    left = [request for request in [first, *others] if request.id != row.request.id]
    assert all(list(done[request.id].tokens) == reference(model, request) for request in left)
    assert engine.stats.cached_tokens > 0


@pytest.mark.parametrize("part", ["attend", "head"])
@pytest.mark.parametrize("rounds", [0, 3])
def test_nothing_outlives_a_round_that_failed(part: str, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("llama")
    engine = small_engine(model, max_rows=4)
    requests = asked()
    for request in requests:
        engine.add(request)
    for _ in range(rounds):
        engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine.target, part, lambda *given: 1 / 0)
        with pytest.raises(EngineFailed, match="division by zero"):
            run(engine, [])
    assert not engine.scheduler.prefixes.give_way()
    for request in requests:
        engine.cancel(request.id)
    run(engine, [])
    done = run(engine, requests)
    assert all(list(done[request.id].tokens) == reference(model, request) for request in requests)


def test_the_tree_counts_who_begins_alike() -> None:
    draw = random.Random(1)
    for _ in range(50):
        tree = PrefixTree()
        known = [tuple(draw.randrange(3) for _ in range(draw.randint(0, 8))) for _ in range(20)]
        for tokens in known:
            tree.add(tokens)
        for tokens in known:
            path = tree.path(tokens)
            assert [node.length for node in path] == sorted({node.length for node in path})
            assert not tokens or path[-1].length == len(tokens)
            for node in path:
                assert node.requests == sum(other[: node.length] == tokens[: node.length] for other in known)
        for tokens in known:
            tree.remove(tokens)
        assert not tree.root.children


def test_the_prefix_that_saves_most_is_kept() -> None:
    pages = Pages(64)
    prefixes = PrefixCache(pages)
    draw = random.Random(2)
    template = text(draw, 200)
    pair = template + text(draw, 60)
    for tokens in [*((*template, n, 1, 2) for n in range(20)), (*pair, 1, 2), (*pair, 3, 4), text(draw, 80)]:
        prefixes.note(tokens)
    reserved = prefixes.reserve((*pair, 1, 2), None)
    assert [prefix.length for prefix in reserved] == [192, 256]
    assert prefixes.find((*template, 0, 1, 2)) == (None, True)
    own = pages.allocate(5)
    assert own
    prefixes.keep(reserved[0], own)
    reserved[0].ready = True
    assert reserved[0].pages == own[:3]
    assert prefixes.find((*template, 0, 1, 2)) == (reserved[0], False)
    assert prefixes.find((*pair, 3, 4)) == (reserved[0], True)
    assert prefixes.reserve((*template, 0, 1, 2), reserved[0]) == []
    assert prefixes.find(template) == (None, False)  # its last token is wanted itself
    assert not prefixes.give_way()  # that would free no page: a row has them all
    pages.release(own)
    assert prefixes.give_way()
    assert pages.free == 64


def test_old_prompts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.schedule.prefix.REMEMBERED", 500)
    prefixes = PrefixCache(Pages(64))
    draw = random.Random(2)
    template = text(draw, 70)
    prefixes.note((*template, 1, 2))
    prefixes.note((*template, 3, 4))
    assert [prefix.length for prefix in prefixes.reserve((*template, 3, 4), None)] == [64]
    prefixes.clear()
    for _ in range(10):
        prefixes.note(text(draw, 60))
    assert prefixes.reserve((*template, 3, 4), None) == []


def test_pages_are_shared_and_grow_as_they_are_asked_for() -> None:
    pages = Pages(300)
    assert (pages.count, pages.free) == (64, 300)
    first = pages.allocate(60)
    assert first
    assert first == list(range(60))
    pages.share(first[:2])
    pages.release(first)
    assert pages.free == 298
    assert pages.allocate(3) == [2, 3, 4]
    assert pages.allocate(200)
    assert pages.count == 205  # twice as many would not have been enough
    assert pages.allocate(96) is None
    assert pages.allocate(95)
    assert (pages.count, pages.free) == (300, 0)
