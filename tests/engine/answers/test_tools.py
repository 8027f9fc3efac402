"""Grammars of enforced calls: llguidance lets exactly those texts through that the model's parser reads as calls."""

from __future__ import annotations

from copy import copy
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from draftmill.engine.answers.tools import Tools, grammar
from draftmill.engine.request import RequestError
from draftmill.engine.text import Text
from tests.engine.tokenizers import TOOLS, smollm, with_template

CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/name"}}, "required": ["city"],
        "additionalProperties": False, "$defs": {"name": {"type": "string", "maxLength": 5}}}  # fmt: skip


def function(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **parameters}}


OFFERED = (function("weather", parameters=CITY), function('ti"me'))
MARKED = "<tool_call>\n{}\n</tool_call>"
WEATHER, TIME = '{"name": "weather", "arguments": {"city": "Ulm"}}', '{"name": "ti\\"me", "arguments": {"at": 3}}'


def accepts(tools: Tools, text: Text, written: str) -> bool:
    """Whether the grammar allows this text and an end after it."""
    backend: Any = copy(text.tokenizer.backend_tokenizer)
    vocabulary = LLTokenizer(backend.to_str(), n_vocab=backend.get_vocab_size(), eos_token=text.tokenizer.eos_token_id)
    made = grammar(tools, text)
    assert made.kind == "lark"
    matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(made.text))
    assert not matcher.get_error(), matcher.get_error()
    tokens = text.tokenizer.encode(written, add_special_tokens=False)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("special", [False, True])
def test_models_that_write_json_between_markers(special: bool) -> None:
    tokenizer = with_template(TOOLS)
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    text = Text(tokenizer)
    required, named = Tools(OFFERED, required=True), Tools(OFFERED, named="weather")
    for written, by_required, by_named in (
        (MARKED.format(WEATHER), True, True),
        (MARKED.format(TIME), True, False),
        (f"{MARKED.format(WEATHER)}\n{MARKED.format(TIME)}", True, False),
        (WEATHER, False, False),
        ("No.", False, False),
        (MARKED.format(WEATHER.replace("Ulm", "Ulmulm")), False, False),
        (MARKED.format(WEATHER.replace('"city": "Ulm"', "")), False, False),
    ):
        assert accepts(required, text, written) == by_required
        assert accepts(named, text, written) == by_named


def test_one_call_is_enforced_where_one_is_wanted() -> None:
    text = Text(with_template(TOOLS))
    tools = Tools(OFFERED, required=True, single=True)
    assert accepts(tools, text, MARKED.format(TIME))
    assert not accepts(tools, text, f"{MARKED.format(WEATHER)}\n{MARKED.format(TIME)}")


def test_other_models_write_one_call_as_json() -> None:
    for text in (Text(smollm()), Text(with_template(TOOLS, "qwen3_coder"))):
        tools = Tools(OFFERED, required=True)
        assert accepts(tools, text, WEATHER)
        assert accepts(tools, text, TIME)
        assert not accepts(tools, text, f"{WEATHER}\n{TIME}")
        assert not accepts(tools, text, MARKED.format(WEATHER))


def test_a_name_that_is_not_offered_is_refused() -> None:
    with pytest.raises(RequestError, match="tool_choice names 'where', which is none of the tools"):
        grammar(Tools(OFFERED, named="where"), Text(smollm()))
