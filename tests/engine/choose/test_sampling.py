"""Every sampling parameter against mlx-lm's own processors and samplers: any draft, any company, after any restart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from draftmill.engine.engine import Engine
from draftmill.engine.request import Completion, Request, RequestError, Sampling
from tests.engine.drafting.test_speculation import Replay, changing, engine_with_draft, small_model
from tests.engine.processors import continuation
from tests.engine.small import VOCABULARY, reference, requests, run, small_engine
from tests.engine.test_recovery import at, failing

END = 13
"""The end token of all engines here: greedy rows of the small models come to it."""

PENALTIES = dict(repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=0.4)
BIAS = tuple((token, float(token % 7 - 3) * 2) for token in range(0, VOCABULARY, 3))

CASES: dict[str, dict[str, Any]] = {
    "repetition": dict(repetition_penalty=1.5),
    "repetition is sought": dict(repetition_penalty=0.8),
    "presence": dict(presence_penalty=1.5),
    "frequency": dict(frequency_penalty=0.9),
    "frequency is sought": dict(frequency_penalty=-0.5),
    "bias": dict(logit_bias=BIAS),
    "allowed": dict(allowed_token_ids=tuple(range(1, VOCABULARY, 2))),
    "min tokens": dict(min_tokens=19),
    "stop ids": dict(stop_token_ids=tuple(range(30, 40))),
    "stop ids not before min tokens": dict(stop_token_ids=tuple(range(20, 60)), min_tokens=11),
    "end tokens ignored": dict(ignore_eos=True, stop_token_ids=(31,)),
    "bad words": dict(bad_words=("13", "40 41", *(f"{a} {b}" for a in range(96) for b in range(a % 5, 96, 5)))),
    "all": dict(
        **PENALTIES,
        logit_bias=BIAS,
        allowed_token_ids=tuple(range(90)),
        min_tokens=9,
        stop_token_ids=(30,),
        bad_words=("3", *(f"{a} {b}" for a in range(96) for b in range(a % 9, 96, 9))),
    ),
}
DRAWN = {
    **{f"{name}, drawn": dict(case, temperature=0.8) for name, case in CASES.items()},
    "min-p": dict(temperature=1.2, min_p=0.08),
    "min-p, top-k and top-p": dict(temperature=1.5, min_p=0.02, top_k=12, top_p=0.9),
    "min-p and penalties": dict(temperature=1.1, min_p=0.05, **PENALTIES),
}


@cache
def asked(name: str) -> list[Request]:
    return requests(8, **{**CASES, **DRAWN}[name])


def expected(name: str, family: str = "llama") -> dict[str, list[int]]:
    return {request.id: continuation(small_model(family), request, ends(request))[0] for request in asked(name)}


def ends(request: Request) -> frozenset[int]:
    own = frozenset(request.sampling.stop_token_ids)
    return own if request.sampling.ignore_eos else own | {END}


def replaying(
    texts: dict[str, list[int]], wrong: Callable[[int], bool], family: str = "llama", **options: Any
) -> Engine:
    """Drafts the expected tokens but for some."""
    engine = engine_with_draft(small_model(family), end=(END,), **options)
    assert engine.drafter
    engine.drafter = Replay(engine.drafter.draft, engine.target, engine.pool.pages).replay(texts, wrong)
    return engine


def texts(name: str, family: str = "llama") -> dict[str, list[int]]:
    own = expected(name, family)
    return {request.id: [*request.tokens, *own[request.id], *[0] * 40] for request in asked(name)}


def tokens(done: dict[str, Completion]) -> dict[str, list[int]]:
    return {id: list(completion.tokens) for id, completion in done.items()}


@pytest.mark.parametrize("name", [*CASES, *DRAWN])
def test_it_does_what_mlx_lm_does(name: str) -> None:
    wanted = expected(name)
    engines = [
        small_engine(small_model("llama"), (END,)),
        engine_with_draft(small_model("llama"), end=(END,)),
        replaying(texts(name), lambda i: False),
        replaying(texts(name), lambda i: i % 3 == 0),
    ]
    for engine in engines:
        assert tokens(run(engine, asked(name))) == wanted
    engines[3].scheduler.depths = changing(3)
    assert tokens(run(engines[3], asked(name), every=2)) == wanted
    for engine, request in zip(engines[:2], asked(name), strict=False):  # alone
        assert tokens(run(engine, [request])) == {request.id: wanted[request.id]}


@pytest.mark.parametrize("name", CASES)
def test_cases_change_something(name: str) -> None:
    def plain(request: Request) -> list[int]:
        text = reference(small_model("llama"), request)
        return text[: text.index(END)] if END in text else text

    own = {request.id: plain(request) for request in asked(name)}
    assert sum(own[id] != text for id, text in expected(name).items()) >= 4


@pytest.mark.parametrize("name", ["all", "all, drawn", "min-p and penalties"])
def test_recurrent_layers_change_nothing(name: str) -> None:
    wanted = expected(name, "qwen3.5")
    engines = [
        small_engine(small_model("qwen3.5"), (END,)),
        replaying(texts(name, "qwen3.5"), lambda i: i % 4 == 1, "qwen3.5", max_rows=5),
    ]
    for engine in engines:
        assert tokens(run(engine, asked(name))) == wanted


def test_an_oracle_s_drafts_are_all_accepted() -> None:
    done = run(replaying(texts("all"), lambda i: False), asked("all"))
    for completion in done.values():
        assert completion.accepted >= len(completion.tokens) - 1 - completion.rounds


def test_the_draft_draws_with_the_same_changes() -> None:
    """A random draft is right where changes leave one token, which differs before and behind `min_tokens`."""
    model = small_model("llama")
    wanted = requests(4, logit_bias=((END, 200.0), (7, 100.0)), min_tokens=20)
    engine = engine_with_draft(model, end=(END,))
    for completion in run(engine, wanted).values():
        assert (completion.tokens, completion.finish_reason) == ((7,) * 20, "stop")
    assert engine.stats.accepted == engine.stats.drafted > 0


@pytest.mark.parametrize("name", ["all", "frequency", "all, drawn"])
def test_rows_keep_their_history_when_they_are_sent_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lasting = dict(max_tokens=60, min_tokens=45)
    long = [replace(request, sampling=replace(request.sampling, **lasting)) for request in asked(name)[:6]]
    wanted = {request.id: continuation(small_model("llama"), request, ends(request))[0] for request in long}
    own = {request.id: [*request.tokens, *wanted[request.id], *[0] * 99] for request in long}
    monkeypatch.setattr("draftmill.engine.schedule.scheduler.HEADROOM", 2)
    tight = small_engine(small_model("llama"), (END,), max_rows=6, slots=150)
    drafting = replaying(own, lambda i: i % 5 == 0, max_rows=6, slots=200)
    for engine in (tight, drafting):
        assert tokens(run(engine, long)) == wanted
    assert tight.scheduler.preempted > 0
    broken = failing(replaying(own, lambda i: i % 5 == 0, max_rows=4), at(20, 90, 150))
    assert tokens(run(broken, long, every=2)) == wanted


def test_rows_with_a_common_prefix_have_it_in_their_history() -> None:
    prefix = tuple(range(70))
    sharing = [replace(request, tokens=prefix + request.tokens) for request in asked("all")]
    wanted = {request.id: continuation(small_model("llama"), request, ends(request))[0] for request in sharing}
    done = run(small_engine(small_model("llama"), (END,), max_rows=3), sharing)
    assert tokens(done) == wanted
    assert sum(completion.cached_tokens for completion in done.values()) > 0


def test_a_row_does_not_feel_its_neighbours_changes() -> None:
    plain, changing_ones = requests(4), asked("all")[4:]
    engine = small_engine(small_model("llama"), (END,))
    done = tokens(run(engine, [*plain, *changing_ones]))
    assert done == tokens(run(small_engine(small_model("llama"), (END,)), plain)) | {
        request.id: expected("all")[request.id] for request in changing_ones
    }


def test_a_row_without_changes_costs_nothing() -> None:
    engine = engine_with_draft(small_model("llama"), end=(END,))
    for request in requests(4, temperature=1.0, min_p=0.1, stop_token_ids=(3,), ignore_eos=True):
        engine.add(request)
    for _ in range(4):
        engine.step()
        assert not engine._histories.arrays


def test_min_tokens_cost_nothing_once_they_are_there() -> None:
    engine = small_engine(small_model("llama"), (END,))
    (request,) = requests(1, min_tokens=5)
    engine.add(request)
    row = next(iter(engine._rows.values()))
    early: list[bool] = []
    while engine.busy:
        engine.step()
        early.append(engine._histories.of(row) is not None)
    assert any(early)
    assert not any(early[8:])


def stopping(stop: Sequence[str], **sampling: Any) -> Completion:
    (request,) = requests(1, stop=tuple(stop), **sampling)
    return run(small_engine(small_model("llama")), [request])["r0"]


def test_stop_strings_are_shown_if_they_are_included() -> None:
    text = reference(small_model("llama"), requests(1)[0])
    stop = f"{text[6]} {text[7]}"
    plain, included = stopping([stop]), stopping([stop], include_stop=True)
    assert plain.tokens == included.tokens == tuple(text[:8])
    assert included.text == plain.text + stop
    assert included.finish_reason == "stop"


def test_stop_strings_count_behind_min_tokens_only() -> None:
    """As in vLLM: one that ends in a later token counts, wherever it begins."""
    text = reference(small_model("llama"), requests(1)[0])
    stop = f" {text[6]} {text[7]} "
    assert stopping([stop], min_tokens=7).tokens == tuple(text[:8])
    assert len(stopping([stop], min_tokens=8).tokens) > 8
    later = stopping([stop, f" {text[12]} "], min_tokens=8)
    assert later.tokens[:13] == tuple(text[: len(later.tokens)])
    assert later.text == "".join(f"{token} " for token in text[:12])[:-1]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (dict(logit_bias=((5, 1.0), (96, 1.0))), "logit_bias has token 96, the model's are 0 to 95"),
        (dict(allowed_token_ids=(1, 1000)), "allowed_token_ids has token 1,000, the model's are 0 to 95"),
        (dict(stop_token_ids=(-1,)), "stop_token_ids has token -1, the model's are 0 to 95"),
        (dict(max_tokens=5, min_tokens=6), "min_tokens is 6, but max_tokens and the context leave 5; lower it"),
        (dict(allowed_token_ids=(END,), min_tokens=1), "forbid all of allowed_token_ids"),
        (dict(allowed_token_ids=(3,), bad_words=("3",)), "forbid all of allowed_token_ids"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(sampling: dict[str, Any], message: str) -> None:
    engine = small_engine(small_model("llama"), (END,))
    with pytest.raises(RequestError) as info:
        engine.add(Request("x", (1, 2), Sampling(**sampling)))
    assert message in str(info.value)
    assert "\n" not in str(info.value)
    assert not engine.busy


def test_a_prompt_of_tokens_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(RequestError, match="the prompt has token 96"):
        small_engine(small_model("llama")).add(Request("x", (1, 96)))
