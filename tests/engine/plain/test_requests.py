"""What a request asks for means the same in the plain engine as in the one with adapters: here on one Llama model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from draftmill.engine.engine import Engine
from draftmill.engine.plain.caches import STEP
from draftmill.engine.plain.engine import PlainEngine
from draftmill.engine.request import Completion, Request, RequestError, Sampling
from draftmill.engine.schedule.scheduler import HEADROOM
from tests.engine.choose import test_grammar, test_thoughts
from tests.engine.plain.architectures import plain_engine, tiny
from tests.engine.processors import continuation
from tests.engine.small import NumberTokenizer, llama_model, reference, requests, run, small_engine

TOKEN = 3 * 2 * 2 * 32 * 4
"""Bytes that a token takes in the model's three layers: keys and values of two heads in float32."""

SAMPLINGS: list[dict[str, Any]] = [
    dict(temperature=0.9, top_p=0.9, top_k=30),
    dict(temperature=1.3, min_p=0.05, seed=2**40 + 7),
    dict(repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.3),
    dict(temperature=0.8, repetition_penalty=1.2, frequency_penalty=-0.2, logit_bias=((5, 4.0), (6, -3.0))),
    dict(temperature=1.0, allowed_token_ids=tuple(range(40)), bad_words=("7", "3 4")),
    dict(temperature=1.0, stop_token_ids=(1, 2, 3, 4, 5, 6), min_tokens=9),
    dict(temperature=1.0, ignore_eos=True, stop=("1 ", "22 "), min_tokens=4, include_stop=True),
    dict(stop=("5 ",)),
    dict(logprobs=4, temperature=0.7),
    dict(max_tokens=1),
]


@cache
def model() -> Any:
    return llama_model()


def asking() -> list[Request]:
    """Each kind of sampling twice, in ragged company."""
    asked = requests(2 * len(SAMPLINGS))
    return [
        replace(request, sampling=replace(request.sampling, **SAMPLINGS[i // 2])) for i, request in enumerate(asked)
    ]


def shown(done: dict[str, Completion]) -> dict[str, Any]:
    """What users see of completions."""
    return {id: (it.tokens, it.text, it.finish_reason, tops(it)) for id, it in done.items()}


def tops(completion: Completion) -> list[Any]:
    """Its log-probabilities, as far as float32 has them the same, and the likeliest tokens."""
    return [(each.token, round(each.logprob, 3), [token for token, _ in each.top]) for each in completion.logprobs]


@pytest.mark.parametrize("every", [0, 2])
def test_tokens_texts_and_log_probabilities_are_those_of_the_engine_with_adapters(every: int) -> None:
    asked = asking()
    expected = run(small_engine(model(), (17, 60)), asked)
    assert {completion.finish_reason for completion in expected.values()} == {"stop", "length"}
    done = run(plain_engine(model(), NumberTokenizer((17, 60)), max_rows=5), asked, every)
    assert shown(done) == shown(expected)


@pytest.mark.parametrize("sampling", SAMPLINGS[2:6], ids=str)
def test_changed_logits_are_mlx_lm_s(sampling: dict[str, Any]) -> None:
    asked = [
        replace(request, sampling=replace(request.sampling, **sampling, logprobs=3)) for request in requests(4, 12)
    ]
    done = run(plain_engine(model(), NumberTokenizer((17,))), asked)
    for request in asked:
        ends = frozenset({17, *request.sampling.stop_token_ids})
        tokens, given = continuation(model(), request, ends)
        assert list(done[request.id].tokens) == tokens
        for ours, theirs in zip(done[request.id].logprobs, given, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert [value for _, value in ours.top] == pytest.approx([value for _, value in theirs.top], abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_grammars_hold_and_harm_nobody(temperature: float) -> None:
    asked = test_grammar.asking(4, temperature=temperature)
    free = [replace(request, id=f"free {request.id}", grammar=None) for request in asked[:2]]
    expected = run(test_grammar.engine(), asked + free)
    made = plain_engine(test_grammar.small_model("llama"), test_grammar.tokenizer(), max_rows=4)
    done = run(made, asked + free, every=3)
    assert shown(done) == shown(expected)
    for request in asked:
        if done[request.id].finish_reason == "stop":
            test_grammar.assert_valid(done[request.id], test_grammar.REVIEW)


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_thoughts_have_their_budgets(temperature: float) -> None:
    asked = test_thoughts.asking(24, max_tokens=60, temperature=temperature, presence_penalty=0.2)
    expected = run(test_thoughts.engine(), asked)
    done = run(plain_engine(test_thoughts.small_model("llama"), test_thoughts.tokenizer()), asked, every=1)
    assert shown(done) == shown(expected)
    for request in asked:
        test_thoughts.assert_obeyed(request, done[request.id])


def test_choices_of_one_prompt_read_it_once() -> None:
    one = replace(requests(1)[0], tokens=tuple(range(40)))
    asked = [replace(one, id=f"c{i}", sampling=Sampling(24, temperature=1.0, seed=i)) for i in range(5)]
    engine = plain_engine(model())
    done = run(engine, asked)
    expected = run(small_engine(model()), asked)
    assert {id: it.tokens for id, it in done.items()} == {id: it.tokens for id, it in expected.items()}
    assert sorted(it.cached_tokens for it in done.values()) == [0, 39, 39, 39, 39]
    assert engine.stats.prefilled_tokens == 39 + 5


@pytest.mark.parametrize("architecture", ["llama", "qwen3_next", "gemma3_text", "llama4"])
def test_a_template_is_read_once(architecture: str) -> None:
    made = model() if architecture == "llama" else tiny(architecture)
    prefix = tuple(i % 90 for i in range(80))
    asked = [replace(request, tokens=prefix + request.tokens) for request in requests(9, max_tokens=10)]
    engine = plain_engine(made, max_rows=3)
    done = run(engine, asked)
    for request in asked:
        assert list(done[request.id].tokens) == reference(made, request)
    assert engine.stats.cached_tokens == sum(it.cached_tokens for it in done.values())
    if architecture in ("llama", "qwen3_next"):  # a window that is full cannot go back
        assert sum(it.cached_tokens >= 80 for it in done.values()) >= 6


def test_rows_that_find_no_memory_wait_and_those_that_outgrow_it_start_again() -> None:
    asked = [
        replace(request, sampling=replace(request.sampling, max_tokens=200, temperature=0.8)) for request in requests(4)
    ]
    engine = plain_engine(model(), memory=3 * TOKEN * (40 + HEADROOM + STEP) * 8 // 7 + 1)
    done = run(engine, asked)
    expected = run(small_engine(model()), asked)
    assert {id: it.tokens for id, it in done.items()} == {id: it.tokens for id, it in expected.items()}
    assert engine.stats.prefilled_tokens > sum(len(request.tokens) for request in asked)


def refused(engine: PlainEngine | Engine, request: Request) -> str:
    with pytest.raises(RequestError) as caught:
        engine.add(request)
    return str(caught.value)


def test_what_could_never_be_served_is_refused() -> None:
    engine, request = plain_engine(model(), memory=1_000_000, context=4096), requests(1)[0]
    assert "prompt and max_tokens need" in refused(
        engine, replace(request, sampling=replace(request.sampling, max_tokens=4000))
    )
    many = replace(request, tokens=tuple([1] * 4096))
    assert refused(engine, many) == refused(small_engine(model(), context=4096), many)
    engine.add(request)
    assert refused(engine, request) == "request 'r0' is already running"


def test_cancelled_anywhere() -> None:
    asked: Sequence[Request] = requests(9)
    for steps in range(4):
        engine = plain_engine(model(), max_rows=4)
        for request in asked:
            engine.add(request)
        done: dict[str, Completion] = {}
        for _ in range(steps):
            done |= {it.id: it for it in engine.step()}
        for request in asked[::2]:
            engine.cancel(request.id)
        while engine.busy:
            done |= {it.id: it for it in engine.step()}
        for i, request in enumerate(asked):
            expected = reference(model(), request)
            if i % 2:
                assert list(done[request.id].tokens) == expected
            else:
                assert done[request.id].finish_reason == "cancelled"
                assert list(done[request.id].tokens) == expected[: len(done[request.id].tokens)]
