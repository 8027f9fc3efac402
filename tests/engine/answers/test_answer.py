"""Answers are taken apart where mlx-lm's wrapper finds the markers, and by its parsers; nothing else is touched."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tool_parsers import mistral, qwen3_coder

from draftmill.engine.answers.answer import NO_PARSER, UNREADABLE, Answer, read
from draftmill.engine.answers.tools import Call, Tools
from draftmill.engine.request import Completion, FinishReason, Thinking
from draftmill.engine.text import Text
from tests.engine.tokenizers import TOOLS, smollm, with_template

TEXT = Text(with_template(TOOLS))
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}},
}
OFFERED = Tools((WEATHER,))
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'


def completion(written: str, text: Text = TEXT, said: str | None = None, reason: FinishReason = "stop") -> Completion:
    """What a model wrote, `said` of it if a stop string has cut it."""
    tokens = tuple(text.tokenizer.encode(written, add_special_tokens=False))
    return Completion("r", text.decode(tokens) if said is None else said, tokens, reason, 3)


@pytest.mark.parametrize(
    ("thinking", "written", "reasoning", "content"),
    [
        ("may", "<think>\nI see.\n</think>\n\nYes.", "I see.", "Yes."),
        ("may", "\n\n<think>\n\n</think>\n\nYes.\n", "", "Yes.\n"),
        ("may", "Yes.", None, "Yes."),
        ("may", "", None, ""),
        ("may", "<think>\nI see", "I see", ""),
        ("may", "So: <think>no</think>", None, "So: <think>no</think>"),
        ("open", "I see.\n</think>\n\n für 東京 🗼", "I see.", " für 東京 🗼"),
        ("open", "I see", "I see", ""),
        ("open", "</think>Yes", "", "Yes"),
        ("open", "a</think>b</think>c", "a", "b</think>c"),
        ("none", "<think>\nI see.\n</think>\n\nYes.", None, "<think>\nI see.\n</think>\n\nYes."),
    ],
)
def test_thoughts_are_what_stands_between_the_markers(
    thinking: Thinking, written: str, reasoning: str | None, content: str
) -> None:
    done = completion(written)
    answer = read(done, thinking, None, TEXT)
    assert (answer.reasoning, answer.content) == (reasoning, content)
    if reasoning is None:
        assert answer.reasoning_tokens == 0
    else:  # as mlx-lm finds the markers
        begin = 0 if thinking == "open" else TEXT.tokenizer.find_think_start(done.tokens) + 1
        end = TEXT.tokenizer.find_think_end(done.tokens)
        assert answer.reasoning_tokens == (end if end >= 0 else len(done.tokens)) - begin


@pytest.mark.parametrize(
    ("said", "reasoning", "content"),
    [
        ("I se", "I se", ""),
        ("I see.</think>Yes", "I see.", "Yes"),
        ("I see.</thi", "I see.</thi", ""),
    ],
)
def test_a_stop_string_may_cut_thoughts_and_answers(said: str, reasoning: str, content: str) -> None:
    answer = read(completion("I see.</think>Yes, so", said=said), "open", None, TEXT)
    assert (answer.reasoning, answer.content) == (reasoning, content)


@settings(max_examples=100, deadline=None)
@given(
    thoughts=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    content=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_any_thoughts_and_any_answer_come_apart(thoughts: str, content: str) -> None:
    tokens = [TEXT.tokenizer.encode(part, add_special_tokens=False) for part in (thoughts, content)]
    end = TEXT.tokenizer.think_end_tokens
    written = (*tokens[0], *end, *tokens[1])
    answer = read(Completion("r", TEXT.decode(written), written, "stop", 1), "open", None, TEXT)
    assert answer.reasoning == TEXT.decode(tokens[0]).strip()
    assert answer.content == TEXT.decode(tokens[1]).lstrip("\n")


@pytest.mark.parametrize(
    ("written", "content", "calls"),
    [
        (CALL, None, 1),
        (f"{CALL}\n{CALL}", None, 2),
        (f"I ask.\n{CALL}\n", "I ask.", 1),
        (f"<think>\nhm\n</think>\n\n{CALL}", None, 1),
        (CALL.removesuffix("\n</tool_call>"), None, 1),
        ("No call.", "No call.", 0),
        ('<tool_call>{"name": "weather"}</tool_call>', None, 1),
    ],
)
def test_calls_are_parsed_as_by_mlx_lm(written: str, content: str | None, calls: int) -> None:
    answer = read(completion(written), "may", OFFERED, TEXT)
    assert (answer.content, len(answer.calls), answer.notes) == (content, calls, ())
    assert all(call.name == "weather" and json.loads(call.arguments) in ({"city": "Ulm"}, {}) for call in answer.calls)


@pytest.mark.parametrize(
    "written",
    [
        CALL.replace('"Ulm"', '"Ulm'),
        CALL.replace('"name"', '"nom"'),
        '<tool_call>{"name": "weather", "arguments": "\\ud800"}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
        f"{CALL}\n<tool_call>{'[' * 100_000}",
    ],
)
def test_a_call_that_cannot_be_read_stays_text(written: str) -> None:
    answer = read(completion(written), "none", OFFERED, TEXT)
    assert answer == Answer(written, notes=(UNREADABLE,))


def test_of_several_calls_the_first_is_kept_where_one_is_wanted() -> None:
    (tool,) = OFFERED.tools
    answer = read(completion(f"{CALL}\n{CALL.replace('Ulm', 'Bonn')}"), "none", Tools((tool,), single=True), TEXT)
    assert answer.calls == (Call("weather", '{"city": "Ulm"}'),)


def test_halves_of_characters_in_arguments_stay_escaped() -> None:
    written = '<tool_call>{"name": "weather", "arguments": {"city": "\\ud800"}}</tool_call>'
    (call,) = read(completion(written), "none", OFFERED, TEXT).calls
    assert call == Call("weather", '{"city": "\\ud800"}')


def test_calls_are_left_alone_where_no_tool_was_offered() -> None:
    assert read(completion(CALL), "none", None, TEXT) == Answer(CALL)


def test_models_without_a_parser_say_so() -> None:
    text = Text(smollm())
    assert read(completion("Yes.", text), "none", OFFERED, text) == Answer("Yes.", notes=(NO_PARSER,))


def test_enforced_calls_are_read_as_plain_json_by_models_of_another_form() -> None:
    written = '{"name": "weather", "arguments": {"city": "Ulm"}}'
    for text in (Text(smollm()), Text(with_template(TOOLS, "qwen3_coder"))):
        done = completion(written, text)
        must = Tools((WEATHER,), required=True)
        assert read(done, "none", must, text) == Answer(None, calls=(Call("weather", '{"city": "Ulm"}'),))
        cut = completion(written[:20], text, reason="length")
        assert read(cut, "none", must, text) == Answer(written[:20], notes=(UNREADABLE,))


@pytest.mark.parametrize(
    ("parser", "module", "written"),
    [
        ("qwen3_coder", qwen3_coder, "{}\n<function=weather>\n<parameter=city>\nUlm\n</parameter>\n</function>\n{}"),
        ("mistral", mistral, '{}weather[ARGS]{{"city": "Ulm"}}{}'),
    ],
)
def test_other_forms_are_parsed_by_mlx_lm_s_parsers(parser: str, module: Any, written: str) -> None:
    text = Text(with_template(TOOLS, parser))
    done = completion("Yes. " + written.format(module.tool_call_start, module.tool_call_end), text)
    assert read(done, "none", OFFERED, text) == Answer("Yes.", calls=(Call("weather", '{"city": "Ulm"}'),))


def test_markers_may_be_control_tokens_which_texts_do_not_show() -> None:
    tokenizer = with_template(TOOLS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    text = Text(tokenizer)
    done = completion(f"I ask. {CALL}", text, None)
    assert "<tool_call>" not in done.text
    assert read(done, "none", OFFERED, text) == Answer("I ask.", calls=(Call("weather", '{"city": "Ulm"}'),))
