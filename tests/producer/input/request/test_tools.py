"""Tools, and which of them must be called."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat import ChatCompletionFunctionToolParam
from pydantic import TypeAdapter

from draftmill.producer.queue.wire import Tools
from tests.producer.input.request.reading import chat, fault, short

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time"}}
TOOLS = [WEATHER, CLOCK]


def test_these_are_openai_s_tools() -> None:
    assert TypeAdapter(list[ChatCompletionFunctionToolParam]).validate_python(TOOLS) == TOOLS


def test_which_tool_must_be_called() -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    both = tuple(TOOLS)
    for choice, expected in (
        (None, Tools(tools=both)),
        ("auto", Tools(tools=both)),
        ("none", None),
        ("required", Tools(tools=both, required=True)),
        (named, Tools(tools=both, named="get_time")),
    ):
        assert chat(tools=TOOLS, tool_choice=choice, parallel_tool_calls=True).tools == expected
        assert short(tools=TOOLS, tool_choice=choice).tools == expected
        one = chat(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False).tools
        assert one == (expected and expected.model_copy(update={"single": True}))
    for nothing in (None, []):
        assert chat(tools=nothing, tool_choice="auto", parallel_tool_calls=False).tools is None


SHAPE = '{"type": "function", "function": {"name": …}}'


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"tools": WEATHER}, "tools is an object instead of a list"),
        ({"tools": ["x"]}, f'tool 1 is "x"; it must be {SHAPE}'),
        ({"tools": [WEATHER, {"type": "function"}]}, f'tool 2 is {{"type":"function"}}; it must be {SHAPE}'),
        (
            {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
            'tool 1 has the type "custom"; only functions are supported',
        ),
        ({"tools": [{"type": "web_search"}]}, 'tool 1 has the type "web_search"; only functions are supported'),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": None}}]}, ""),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": "x"}}]},
            "tool 1: parameters is a text instead of a JSON schema, an object",
        ),
        ({"tools": [CLOCK, CLOCK]}, 'two tools have the name "get_time"'),
        ({"tool_choice": "required"}, 'tool_choice is "required", but there are no tools'),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
            'tool_choice names "f"; the tools are get_weather, get_time',
        ),
        (
            {"tools": TOOLS, "tool_choice": "any"},
            'tool_choice is "any"; it must be "none", "auto", "required" or a function\'s name',
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
            "tool_choice of the type allowed_tools is not supported; list only those tools",
        ),
        (
            {"tools": TOOLS, "response_format": {"type": "json_object"}},
            'has tools and a grammar, such as response_format; keep one, or set tool_choice to "none"',
        ),
        ({"tools": TOOLS, "tool_choice": "none", "response_format": {"type": "json_object"}}, ""),
    ],
)
def test_what_is_wrong_is_said(asked: dict[str, Any], why: str) -> None:
    assert fault(chat, **asked) == why
