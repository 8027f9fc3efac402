"""Engines that give memory back in the middle of their work, and take it again: the tokens stay the same."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from draftmill.engine.engine import Engine
from draftmill.engine.plain.engine import PlainEngine
from draftmill.engine.request import Completion
from tests.engine.drafting.test_speculation import engine_with_draft, small_model
from tests.engine.plain.architectures import plain_engine, tiny
from tests.engine.small import reference, requests, small_engine


def serve(engine: Engine | PlainEngine, asked: list[Any], shares: dict[int, float]) -> dict[str, Completion]:
    """Serves requests, changing size before the rounds that `shares` names."""
    done: dict[str, Completion] = {}
    for request in asked:
        engine.add(request)
    number = 0
    while engine.busy:
        if share := shares.get(number):
            engine.resize(share)
        done |= {completion.id: completion for completion in engine.step()}
        number += 1
    assert number > max(shares)
    return done


SHARES = {2: 0.5, 4: 0.25, 6: 0.5, 8: 1.0, 10: 0.25}


@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
def test_tokens_stay_the_same(family: str) -> None:
    model, asked = small_model(family), requests(6, max_tokens=12)
    engine = engine_with_draft(model, max_rows=8)
    done = serve(engine, asked, SHARES)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)
    assert engine.max_rows == 2


def test_the_plain_engine_too() -> None:
    model, asked = tiny("phi3"), requests(6, max_tokens=12)
    done = serve(plain_engine(model, max_rows=8), asked, SHARES)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


def test_pools_become_small_and_grow_again() -> None:
    engine = small_engine(small_model("llama"), max_rows=8, slots=20_000, context=2048)
    for request in requests(8, max_tokens=100, longest=1500):
        engine.add(request)
    for _ in range(20):
        engine.step()
    before = engine.pool.pages
    assert (before, len(engine.scheduler.rows)) == (128, 8)
    mx.clear_cache()
    active = mx.get_active_memory()
    engine.resize(0.125)
    assert active - mx.get_active_memory() >= 60 * engine.target.bytes_per_page
    kept = mx.get_cache_memory()
    assert kept == 0 or (mx.default_device() != mx.cpu and kept < 64)  # a GPU may just have finished with a few numbers
    assert engine.pool.pages < 64
    engine.step()
    assert len(engine.scheduler.rows) == 1
    engine.resize(1.0)
    for _ in range(8):
        engine.step()
    assert len(engine.scheduler.rows) > 1


def test_a_request_that_needs_more_than_is_left_still_runs() -> None:
    model = small_model("llama")
    asked = requests(2, max_tokens=150, longest=60)
    engine = small_engine(model, max_rows=4, slots=512)
    engine.resize(0.125)
    assert engine.scheduler.pages.most * 64 < 150
    done = serve(engine, asked, {0: 0.125})
    assert all(len(completion.tokens) == 150 for completion in done.values())
