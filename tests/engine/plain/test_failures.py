"""Rounds that fail in the plain engine: rows go on with the same tokens, a request with which all fail ends alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import mlx.core as mx
import pytest

from draftmill.engine.plain.engine import PlainEngine
from draftmill.engine.request import EngineFailed, Request, Sampling
from tests.engine.choose import test_grammar
from tests.engine.plain.architectures import plain_engine, tiny
from tests.engine.small import llama_model, reference, requests, run, small_engine
from tests.engine.test_recovery import Fault, refused, singular


class Failing:
    """A model whose logits fail for some tokens [rows, length]."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.fails: Callable[[mx.array], bool] = lambda tokens: False
        self.fault: Fault = refused

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, tokens: mx.array, **options: Any) -> mx.array:
        logits = self._model(tokens, **options)
        return self.fault(logits) if self.fails(tokens) else logits


def failing(model: Any, fails: Callable[[mx.array], bool], fault: Fault = refused, **options: Any) -> PlainEngine:
    """An engine whose model fails from now on, as it did not when it was loaded."""
    made = Failing(model)
    engine = plain_engine(made, **options)
    made.fails, made.fault = fails, fault
    return engine


def at(*calls: int) -> Callable[[mx.array], bool]:
    numbers = count()
    return lambda tokens: next(numbers) in calls


@pytest.mark.parametrize(
    ("architecture", "fault", "calls"),
    [*((name, refused, (0, 40, 90)) for name in ("phi3", "qwen3_next", "llama4")), ("phi3", singular, (40,))],
)
def test_after_a_failed_round_rows_go_on_with_their_tokens(
    architecture: str, fault: Fault, calls: tuple[int, ...]
) -> None:
    model, asked = tiny(architecture), requests(6)
    done = run(failing(model, at(*calls), fault, max_rows=4), asked, every=2)
    for request in asked:
        assert (done[request.id].finish_reason, list(done[request.id].tokens)) == ("length", reference(model, request))


def test_grammars_and_draws_are_where_their_rows_are() -> None:
    asked = test_grammar.asking(4, temperature=1.0, presence_penalty=0.3)
    expected = test_grammar.tokens(run(test_grammar.engine(), asked))
    model = test_grammar.small_model("llama")
    done = run(failing(model, at(5, 60, 90), tokenizer=test_grammar.tokenizer()), asked)
    assert test_grammar.tokens(done) == expected


@pytest.mark.parametrize(("count", "most"), [(6, 40), (3, 5)], ids=["the first to start", "the last"])
def test_a_request_that_alone_makes_rounds_fail_ends_and_harms_nobody(count: int, most: int) -> None:
    model = llama_model()
    asked = [request for request in requests(20) if 95 not in (*request.tokens, *reference(model, request))][:count]
    bad = Request("bad", tuple(range(30)), Sampling(max_tokens=most, logit_bias=((95, 1000.0),)))
    done = run(failing(model, lambda tokens: bool((tokens == 95).any()), max_rows=4), [bad, *asked])
    ended = done.pop("bad")
    assert (ended.finish_reason, ended.error) == ("failed", "the engine failed with MemoryError")
    for request in asked:
        assert (done[request.id].finish_reason, list(done[request.id].tokens)) == ("length", reference(model, request))


def test_an_engine_that_always_fails_says_so_at_once() -> None:
    engine = failing(llama_model(), lambda tokens: True)
    for request in requests(4):
        engine.add(request)
    with pytest.raises(EngineFailed, match=r"failed \(MemoryError: no room\), then one of fixed tokens did"):
        engine.step()
    assert engine.busy


def test_rounds_that_fail_only_with_many_rows_are_said_to() -> None:
    engine = failing(llama_model(), lambda tokens: tokens.shape[0] > 3)
    with pytest.raises(EngineFailed, match=r"rounds of \d requests fail, of one they do not: lower --max-rows"):
        run(engine, requests(6))


def test_sampled_rows_go_on_too() -> None:
    model = llama_model()
    asked = [replace(request, tokens=(*range(70), *request.tokens)) for request in requests(6, temperature=0.9)]
    expected = run(small_engine(model), asked)
    done = run(failing(model, at(45), singular, max_rows=3), asked)
    assert {id: it.tokens for id, it in done.items()} == {id: it.tokens for id, it in expected.items()}
