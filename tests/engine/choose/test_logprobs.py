"""Log-probabilities against mlx-lm's own, of every token: any draft, any company, with grammars, after any restart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from draftmill.engine.choose import change as changing
from draftmill.engine.choose.change import BYTES_PER_LOGIT
from draftmill.engine.choose.logprobs import logprobs
from draftmill.engine.models import boxed
from draftmill.engine.models.folder import load
from draftmill.engine.request import Completion, Request, Sampling, TokenLogprob
from tests.engine.choose import test_grammar
from tests.engine.drafting.test_speculation import engine_with_draft, random_draft, replaying, small_model
from tests.engine.processors import continuation, told
from tests.engine.small import qwen3_5_model, reference, requests, run, small_engine
from tests.engine.test_recovery import at, failing

NEAR = 1e-4


def agree(given: Iterable[TokenLogprob], wanted: Iterable[TokenLogprob]) -> None:
    """The same tokens, log-probabilities that are near; likeliest ones may change places where they nearly tie."""
    for own, other in zip(given, wanted, strict=True):
        assert own.token == other.token
        assert own.logprob == pytest.approx(other.logprob, abs=NEAR)
        assert [value for _, value in own.top] == pytest.approx([value for _, value in other.top], abs=NEAR)
        known = dict(other.top)
        assert all(value == pytest.approx(known.get(token, other.top[-1][1]), abs=NEAR) for token, value in own.top)


def check(done: dict[str, Completion], asked: list[Request], model: Any) -> None:
    for request in asked:
        completion = done[request.id]
        if request.sampling.logprobs is None:
            assert completion.logprobs == ()
            continue
        tokens, wanted = continuation(model, request)
        assert list(completion.tokens) == tokens
        assert [each.token for each in completion.logprobs] == tokens
        assert {len(each.top) for each in completion.logprobs} == {request.sampling.logprobs}
        agree(completion.logprobs, wanted)


def asking(**sampling: Any) -> list[Request]:
    """Rows that ask for 20, for 5, for none but their own and for nothing."""
    return [
        replace(request, sampling=replace(request.sampling, logprobs=(20, 5, 0, None)[i % 4]))
        for i, request in enumerate(requests(8, **sampling))
    ]


@lru_cache
def hybrid() -> Any:
    """Its recurrent heads have the dimensions of real ones, or nearly. The fewer they have, the nearer to zero their
    norms can be, and at random weights of 16 the order of a sum, which each processor chooses, moves a log-probability
    by more than 1e-4: mlx-lm's own by as much from one forward to another.
    """
    return qwen3_5_model(linear_key_head_dim=64, linear_value_head_dim=64)


@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
@pytest.mark.parametrize(
    "sampling", [{}, dict(temperature=0.9, min_p=0.02), dict(repetition_penalty=1.4, logit_bias=((3, 5.0),))], ids=str
)
def test_they_are_mlx_lm_s_whatever_is_drafted(family: str, sampling: dict[str, Any]) -> None:
    model, asked = hybrid() if family == "qwen3.5" else small_model(family), asking(**sampling)
    engines = [small_engine(model), engine_with_draft(model, max_rows=3)]
    if not sampling:
        engines.append(replaying(model, asked, lambda i: i % 3 == 0))
    for engine in engines:
        check(run(engine, asked, every=1), asked, model)
    check(run(engines[1], asked[:1]), asked[:1], model)


def test_those_of_a_trained_model_are_within_1e_4(boxed_model: Path, cache: Path) -> None:
    loaded = load(boxed.NAME, cache)
    loaded.model.set_dtype(mx.float32)  # which it has on a CPU only
    asked = [
        Request(f"r{i}", tuple(loaded.tokenizer.encode(text)), Sampling(max_tokens=5, logprobs=20))
        for i, text in enumerate(["The capital of France is", "One, two, three,"])
    ]
    draft = random_draft(num_target_layers=30, hidden_size=576, vocab_size=49152)
    for engine in (
        small_engine(loaded.model),
        replaying(loaded.model, asked, lambda i: i % 3 == 0, draft=draft),
    ):
        done = run(engine, asked)
        for request in asked:
            tokens, wanted = continuation(loaded.model, request)
            assert list(done[request.id].tokens) == tokens
            agree(done[request.id].logprobs, wanted)


def test_rows_that_are_sent_back_keep_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = small_model("llama"), asking(max_tokens=60)[:6]
    broken = failing(replaying(model, asked, lambda i: i % 5 == 0, max_rows=4), at(20, 90, 150))
    check(run(broken, asked, every=2), asked, model)
    monkeypatch.setattr("draftmill.engine.schedule.scheduler.HEADROOM", 2)
    tight = small_engine(model, max_rows=6, slots=150)
    check(run(tight, asked), asked, model)
    assert tight.scheduler.preempted > 0


@pytest.mark.parametrize("draft", [False, True])
def test_rows_with_grammars_have_the_target_s_unchanged_ones(draft: bool) -> None:
    asked = [replace(request, sampling=replace(request.sampling, logprobs=7)) for request in test_grammar.asking(3)]
    engine = test_grammar.engine(draft=draft)
    done = run(engine, [*asked, *test_grammar.asking(5, temperature=1.0)[3:]])
    for request in asked:
        completion = done[request.id]
        prompt, own = list(request.tokens), list(completion.tokens)
        raw = test_grammar.small_model("llama")(mx.array([prompt + own]))[0, len(prompt) - 1 :]
        agree(completion.logprobs, (told(raw[i], token, 7) for i, token in enumerate(own)))


def test_a_text_that_a_stop_string_ends_has_one_for_each_token() -> None:
    model, (request,) = small_model("llama"), requests(1)
    text = reference(model, request)
    stop = f" {text[6]} "
    stopped = replace(request, sampling=replace(request.sampling, stop=(stop,), logprobs=0))
    completion = run(replaying(model, [request]), [stopped])["r0"]
    assert len(completion.logprobs) == len(completion.tokens) == 7


@pytest.mark.parametrize("vocabulary", [5, 256, 5000])
def test_portions_and_blocks_leave_out_no_token(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mx.random.seed(1)
    logits = mx.round(4 * mx.random.normal((9, vocabulary))).astype(mx.bfloat16)  # of which many are equal
    slots, chosen = [0, 2, 3, 5, 8, 8], mx.array([0, 1, 2, 3, 4, 0])
    monkeypatch.setattr(changing, "PORTION", vocabulary * BYTES_PER_LOGIT * 4)
    given = logprobs(logits, slots, chosen, 20).listed([20, 3, 20, None, 0, 20])
    exact = logits.astype(mx.float32)
    wanted = [
        told(exact[slot], token, most)
        for slot, token, most in ((0, 0, 20), (2, 1, 3), (3, 2, 20), (8, 4, 0), (8, 0, 20))
    ]
    agree(given, wanted)
    assert len({token for token, _ in given[0].top}) == min(20, vocabulary)
    assert np.isfinite([value for each in given for _, value in each.top]).all()
