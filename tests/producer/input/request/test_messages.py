"""Messages and prompts: what may stand in them, and where an answer begins."""

from __future__ import annotations

from typing import Any

import pytest

from draftmill.producer.input.defaults import Defaults
from draftmill.producer.input.notes import Notes
from draftmill.producer.input.request.messages import CONTINUED
from draftmill.producer.queue.wire import Message
from tests.producer.input.request.reading import USER, chat, fault, short, text, told

CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
ASSISTANT = {"role": "assistant", "content": "The sky is"}


def test_a_conversation_with_tools() -> None:
    given = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "What is up?", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "audio": None, "annotations": []},
        {"role": "tool", "content": [{"type": "text", "text": "blue"}], "tool_call_id": "call_1", "name": "look"},
        {"role": "assistant", "content": "Blue.", "reasoning": "It says blue."},
        {"role": "user", "content": "Sure?"},
    ]
    body = chat(messages=given)
    assert body.messages == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="What is up?", name="ann"),
        Message(role="assistant", tool_calls=(CALL,)),
        Message(role="tool", content="blue", tool_call_id="call_1", name="look"),
        Message(role="assistant", content="Blue.", reasoning_content="It says blue."),
        Message(role="user", content="Sure?"),
    )
    assert told(chat, messages=given) == []


def test_arguments_of_calls_are_json_or_objects() -> None:
    def arguments(given: Any) -> Any:
        call = CALL | {"function": {"name": "look", "arguments": given}}
        body = chat(messages=[USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "x"}])
        assert body.messages
        return body.messages[1].tool_calls[0]["function"]["arguments"]

    assert [arguments(given) for given in ('{"a": 1}', {"a": 1}, "", None)] == ['{"a": 1}', {"a": 1}, "{}", "{}"]


def answer(**fields: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant"} | fields, USER]}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (
            {"messages": [{"role": "function", "name": "f", "content": "x"}]},
            'message 1: the role "function" is not supported; use "tool"',
        ),
        (
            {"messages": [{"role": "critic", "content": "x"}]},
            "message 1: role is \"critic\"; it must be 'system', 'user', 'assistant' or 'tool'",
        ),
        (answer(), "message 2 has no content"),
        (
            answer(content="x", function_call={"name": "f"}),
            "message 2 has function_call, which is not supported; use tool_calls",
        ),
        (answer(content="x", audio={"id": "a"}), "message 2 has audio, which is not supported; only text is supported"),
        (
            answer(content="x", prefix=True),
            "message 2 has prefix, which is not supported; say continue_final_message beside the messages",
        ),
        (answer(refusal="No."), "message 2 has refusal, which is not supported; make it the content"),
        (answer(content="x", name=5), "message 2: name is 5; it must be a text"),
        (
            answer(content="x", reasoning="a", reasoning_content="b"),
            "message 2 has both reasoning_content and reasoning; keep one",
        ),
        (answer(tool_calls={}, content="x"), ""),
        (answer(tool_calls="x"), "message 2: tool_calls is a text instead of a list"),
        (
            answer(tool_calls=[{"type": "custom"}]),
            'message 2: call 1 has the type "custom"; only functions are supported',
        ),
        (
            answer(tool_calls=[{"function": {}}]),
            'message 2: call 1 is {"function":{}}; it must be {"type": "function", "function": {"name": …}}',
        ),
        (
            answer(tool_calls=[{"function": {"name": "f", "arguments": "{"}}]),
            "message 2: call 1: arguments are not JSON: unexpected end of data at column 2",
        ),
        (
            answer(tool_calls=[{"function": {"name": "f", "arguments": "[]"}}]),
            "message 2: call 1: arguments are a list instead of an object",
        ),
        ({"messages": [USER | {"tool_calls": [CALL]}]}, "message 1 has tool_calls, and is not the assistant's"),
        ({"prompt": "x"}, "prompt is for texts, those of /v1/completions; remove it"),
    ],
)
def test_what_is_wrong_with_a_message_is_said(asked: dict[str, Any], why: str) -> None:
    assert fault(chat, **asked) == why


def test_unknown_names_of_messages_are_noted() -> None:
    notes = Notes()
    chat(notes=notes, messages=[USER | {"colour": 1}, USER | {"colour": 2}])
    assert dict(notes) == {'field "colour" of a message is unknown and ignored': 1}  # lines, not messages


def test_where_an_answer_begins() -> None:
    ending = {"messages": [USER, ASSISTANT]}
    for asked in ({"continue_final_message": True}, {"continue_final_message": True, "add_generation_prompt": False}):
        assert (chat(**ending, **asked).continues, told(chat, **ending, **asked)) == (True, [])
    assert (chat(**ending).continues, told(chat, **ending)) == (False, [CONTINUED])
    assert told(short, messages=[USER, ASSISTANT], prompt=None) == [CONTINUED]
    assert (chat().prompted, chat(add_generation_prompt=True).prompted) == (True, True)
    assert not chat(add_generation_prompt=False).prompted
    both = "continue_final_message and add_generation_prompt contradict each other; keep one"
    neither = "ends with an assistant's message; say continue_final_message, or add a user's message"
    needs = "continue_final_message needs an assistant's message at the end"
    unanswered = "ends with calls of tools; add their results, messages of the role tool"
    calling = {"role": "assistant", "tool_calls": [CALL]}
    for asked, why in (
        (ending | {"continue_final_message": True, "add_generation_prompt": True}, both),
        (ending | {"add_generation_prompt": True}, neither),
        (ending | {"add_generation_prompt": False}, neither),
        (ending | {"continue_final_message": False}, neither),
        ({"continue_final_message": True}, needs),
        ({"messages": [USER, calling], "continue_final_message": True}, unanswered),
        ({"messages": [USER, calling]}, unanswered),
        (ending | {"continue_final_message": "yes"}, 'continue_final_message is "yes"; it must be true or false'),
    ):
        assert fault(chat, **asked) == why


def test_control_tokens_are_trusted_where_that_is_said() -> None:
    assert [chat(control_tokens=yes).trusted for yes in (None, False, True)] == [False, False, True]
    assert short(defaults=Defaults(trusted=True)).trusted
    assert not short(defaults=Defaults(trusted=True), control_tokens=False).trusted


def test_prompts_are_texts_or_token_ids_or_lists_of_them() -> None:
    assert text(prompt="a").prompts == ("a",)
    assert text(prompt=[1, 2]).prompts == ((1, 2),)
    assert text(prompt=["a", "b"]).prompts == ("a", "b")
    assert text(prompt=[[1], [2, 3]]).prompts == ((1,), (2, 3))
    for prompt, why in (
        ("", "prompt is empty"),
        ([], "prompt is empty"),
        (["a", ""], "prompt 2 is empty"),
        ([[]], "prompt 1 is empty"),
        ([1, "a"], 'prompt is [1,"a"]; it must be a text, or token ids'),
        ([1, -2], "prompt is [1,-2]; it must be a text, or token ids"),
        ([True], "prompt is [true]; it must be a text, or token ids"),
        ([["a"]], 'prompt 1 is ["a"]; it must be a text, or token ids'),
        (5, "prompt is a number instead of a text, token ids, or a list of them"),
        (["a"] * 2049, "2,049 prompts and n = 1 are 2,049 answers; at most 2,048 are allowed in a line"),
        (None, "has no prompt"),
    ):
        assert fault(text, prompt=prompt) == why
    assert fault(text, messages=[USER]) == "messages is for chats, those of /v1/chat/completions; remove it"
