"""Sampling parameters, log-probabilities and choices: values, offs, limits and contradictions."""

from __future__ import annotations

from typing import Any

import pytest

from draftmill.producer.input.defaults import Defaults
from draftmill.producer.queue.wire import Sampling
from tests.producer.input.request.reading import chat, fault, short, text, told


def test_all_parameters_arrive() -> None:
    asked: dict[str, Any] = {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 7,
        "presence_penalty": -1, "frequency_penalty": 2, "repetition_penalty": 1.1, "logit_bias": {"50256": -100},
        "allowed_token_ids": [1, 2], "bad_words": ["no way"], "stop": ["\n"], "stop_token_ids": [3],
        "include_stop_str_in_output": True, "ignore_eos": True, "min_tokens": 4.0, "thinking_budget": 5,
        "max_seconds": 60,
    }  # fmt: skip
    expected = Sampling(
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        seed=7,
        presence_penalty=-1,
        frequency_penalty=2,
        repetition_penalty=1.1,
        logit_bias={50256: -100},
        allowed_token_ids=(1, 2),
        bad_words=("no way",),
        stop=("\n",),
        stop_token_ids=(3,),
        include_stop_str_in_output=True,
        ignore_eos=True,
        min_tokens=4,
        thinking_budget=5,
        max_seconds=60,
    )
    for read in (chat, text, short):
        assert read(**asked).sampling == expected
    assert asked.keys() == Sampling.model_fields.keys() - {"logprobs"}


def test_values_that_turn_something_off() -> None:
    off = {"seed": -1, "top_k": -1, "thinking_token_budget": -1, "min_p": 0, "stop": [], "stop_token_ids": []}
    nothing = dict.fromkeys(Sampling.model_fields)
    for read in (chat, text, short):
        assert read(**off).sampling == Sampling()
        assert read(**nothing).sampling == Sampling()
    set_by_options = Defaults({"seed": 3, "top_k": 5, "thinking_budget": 9, "logprobs": 2})
    assert chat(defaults=set_by_options).sampling == Sampling(seed=3, top_k=5, thinking_budget=9, logprobs=2)
    assert chat(defaults=set_by_options, **off, logprobs=False).sampling == Sampling()


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"min_p": 1.5}, "min_p is 1.5; it must be at most 1"),
        ({"repeat_penalty": 0}, "repeat_penalty is 0; it must be at least 0.01"),
        ({"frequency_penalty": "much"}, 'frequency_penalty is "much"; it must be a number'),
        ({"seed": -2}, "seed is -2; it must be at least 0"),
        ({"top_k": -2}, "top_k is -2; it must be at least 0"),
        ({"ignore_eos": 1}, "ignore_eos is 1; it must be true or false"),
        ({"stop_token_ids": 5}, "stop_token_ids is 5; it must be a list"),
        ({"stop_token_ids": [5, -1]}, "stop_token_ids[1] is -1; it must be at least 0"),
        ({"stop": ["a", ""]}, 'stop[1] is ""; it must be not empty'),
        ({"stop_sequences": [7]}, "stop_sequences[0] is 7; it must be a text"),
        ({"bad_words": "a"}, 'bad_words is "a"; it must be a list'),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty, so no token may come; remove it"),
        ({"logit_bias": [[5, 1]]}, "logit_bias is a list instead of an object of token ids"),
        ({"logit_bias": {"the": 1}}, 'logit_bias has the key "the"; keys must be token ids'),
        ({"logit_bias": {"9" * 5000: 1}}, f'logit_bias has the key "{"9" * 36}…; keys must be token ids'),
        ({"logit_bias": {"7": 1, "07": 2}}, 'logit_bias has the keys "7" and "07" for one token; keep one'),
        ({"logit_bias": {"5": 101}}, "logit_bias[5] is 101; it must be at most 100"),
        ({"logit_bias": {"5": False}}, "logit_bias[5] is false; it must be a number"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens is 6, more than max_tokens, 5"),
        ({"n": 129}, "n is 129; it must be at most 128"),
        ({"n": 1.5}, "n is 1.5; it must be a whole number"),
        ({"n": 2, "best_of": 3}, "best_of = 3 is not supported unless it is n, 2; remove it"),
    ],
)
def test_what_is_wrong_is_said(asked: dict[str, Any], why: str) -> None:
    for read in (chat, text, short):
        assert fault(read, **asked) == why


def test_a_minimum_above_the_maximum_has_the_names_that_the_user_gave() -> None:
    why = "min_new_tokens is 6, more than max_completion_tokens, 5"
    assert fault(chat, min_new_tokens=6, max_completion_tokens=5) == why


def test_log_probabilities_of_chats_and_texts() -> None:
    assert [chat(logprobs=yes).sampling.logprobs for yes in (None, False, True)] == [None, None, 0]
    assert chat(logprobs=True, top_logprobs=20).sampling.logprobs == 20
    assert short(logprobs=True, top_logprobs=3).sampling.logprobs == 3
    assert [text(logprobs=k).sampling.logprobs for k in (None, False, 0, 5, 20)] == [None, None, 0, 5, 20]
    for read, asked, why in (
        (chat, {"logprobs": 5}, "logprobs is 5; in a chat it must be true or false, and top_logprobs a number"),
        (chat, {"top_logprobs": 5}, "top_logprobs is 5, but logprobs is not true"),
        (chat, {"logprobs": False, "top_logprobs": 5}, "top_logprobs is 5, but logprobs is not true"),
        (chat, {"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21; it must be at most 20"),
        (chat, {"logprobs": True, "top_logprobs": -1}, "top_logprobs is -1; it must be at least 0"),
        (text, {"logprobs": 21}, "logprobs is 21; it must be at most 20"),
        (text, {"logprobs": True}, "logprobs is true; it must be a whole number"),
        (
            text,
            {"echo": True, "logprobs": 0},
            "echo with logprobs is not supported: prompts have no log-probabilities; keep one",
        ),
    ):
        assert fault(read, **asked) == why
    assert text(echo=True).echo
    assert fault(text, echo=1) == "echo is 1; it must be true or false"


def test_several_answers() -> None:
    assert chat(n=3, temperature=1).n == 3
    assert text(n=3.0, best_of=3, temperature=1).n == 3
    assert told(chat, n=3, temperature=1) == told(chat, n=1) == []
    assert told(chat, n=3) == ["the n answers are all the same, because the temperature is 0"]
    assert chat(defaults=Defaults(n=4)).n == 4
    assert chat(defaults=Defaults(n=4), n=2).n == 2


def test_what_is_left_to_the_model() -> None:
    assert chat().model_defaults == ()
    asked = Defaults({"top_k": 5}, model_defaults=True)
    assert chat(defaults=asked).model_defaults == ("temperature", "top_p", "min_p", "repetition_penalty")
    assert chat(defaults=asked, temperature=0, repeat_penalty=1).model_defaults == ("top_p", "min_p")
    assert told(chat, defaults=asked, n=2) == []
