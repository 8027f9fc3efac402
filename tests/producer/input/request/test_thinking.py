"""What a chat template is told: thinking under the names of all APIs, and names of its own."""

from __future__ import annotations

from typing import Any

import pytest

from draftmill.producer.input.defaults import Defaults
from tests.producer.input.request.reading import chat, fault, short, text

FORMS: list[tuple[dict[str, Any], dict[str, Any], int | None]] = [
    ({}, {}, None),
    ({"enable_thinking": False}, {"enable_thinking": False}, None),
    ({"thinking": True}, {"enable_thinking": True}, None),
    ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}, None),
    ({"thinking": {"type": "enabled", "budget_tokens": 64}}, {"enable_thinking": True}, 64),
    ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}, None),
    ({"reasoning": {"effort": "high", "max_tokens": 9}}, {"reasoning_effort": "high"}, 9),
    ({"reasoning": {"enabled": False}}, {"enable_thinking": False}, None),
    ({"chat_template_kwargs": {"enable_thinking": False, "x": [1]}}, {"enable_thinking": False, "x": [1]}, None),
    ({"chat_template_kwargs": {"enable_thinking": True}, "thinking": True}, {"enable_thinking": True}, None),
    (
        {"enable_thinking": False, "reasoning_effort": "none"},
        {"enable_thinking": False, "reasoning_effort": "none"},
        None,
    ),
    ({"thinking_budget": 0}, {}, 0),
]


@pytest.mark.parametrize(("asked", "told", "budget"), FORMS, ids=lambda given: str(given)[:40])
def test_each_form_tells_the_template(asked: dict[str, Any], told: dict[str, Any], budget: int | None) -> None:
    for read in (chat, short):
        assert (read(**asked).template, read(**asked).sampling.thinking_budget) == (told, budget)


def test_a_line_that_speaks_of_thinking_is_free_of_the_default() -> None:
    default = Defaults(template={"enable_thinking": False, "colour": "red"})
    assert chat(defaults=default).template == {"enable_thinking": False, "colour": "red"}
    assert chat(defaults=default, enable_thinking=True).template == {"enable_thinking": True, "colour": "red"}
    assert chat(defaults=default, reasoning_effort="low").template == {"reasoning_effort": "low", "colour": "red"}
    assert chat(defaults=default, chat_template_kwargs={"colour": "blue"}).template["colour"] == "blue"
    assert text(defaults=default).template == {}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"enable_thinking": "no"}, 'enable_thinking is "no"; it must be true or false'),
        ({"enable_thinking": True, "thinking": False}, "enable_thinking is true and thinking is false; keep one"),
        (
            {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}},
            "chat_template_kwargs.enable_thinking is false and enable_thinking is true; keep one",
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": True}},
            "chat_template_kwargs.enable_thinking is false and chat_template_kwargs.thinking is true; keep one",
        ),
        (
            {"enable_thinking": False, "reasoning_effort": "high"},
            'enable_thinking is false and reasoning_effort is "high"; keep one',
        ),
        (
            {"thinking": True, "reasoning_effort": "none"},
            'thinking is true and reasoning_effort is "none"; keep one',
        ),
        (
            {"reasoning_effort": "huge"},
            'reasoning_effort is "huge"; it must be one of none, minimal, low, medium, high, xhigh, max',
        ),
        ({"reasoning": "high"}, "reasoning is a text instead of an object"),
        (
            {"reasoning": {"summary": "auto"}},
            "reasoning.summary is not supported; reasoning may have effort, max_tokens, enabled",
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": -2}},
            "thinking.budget_tokens is -2; it must be at least -1",
        ),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs is a list instead of an object"),
        (
            {"chat_template_kwargs": {"add_generation_prompt": False}},
            "chat_template_kwargs.add_generation_prompt is not supported; make it a field of the request",
        ),
    ],
)
def test_what_is_wrong_is_said(asked: dict[str, Any], why: str) -> None:
    assert fault(chat, **asked) == why


def test_thinking_needs_an_object_with_a_known_type() -> None:
    assert fault(chat, thinking="yes").startswith('thinking is "yes"; it must be true, false or {"type":')
    assert fault(chat, thinking={"type": "adaptive"}).startswith('thinking is {"type":"adaptive"}; it must be')
