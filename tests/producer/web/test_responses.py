"""/v1/responses: what it asks becomes a chat or is refused by name, and what it answers is OpenAI's `Response`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import orjson
import pytest
from openai import OpenAI
from openai.types.responses import Response, ResponseFunctionToolCall, ResponseOutputMessage, ResponseReasoningItem

from draftmill.producer.input.lines import Fault
from draftmill.producer.web.serve.forms.answer import response_of
from draftmill.producer.web.serve.forms.asked import chat_of
from tests.producer.conftest import Shell
from tests.producer.web.serving import PAIR, Server, counts, create, jsonl, lines, refused, wait, worker
from tests.redis_server import RedisServer

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Weather of a town",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    "strict": True,
}
TOKEN = {"token": "a", "logprob": -0.5, "bytes": [97]}


def chat(**asked: Any) -> dict[str, Any]:
    body, said = chat_of({"model": "m", "input": "hi"} | asked)
    assert not said
    return {name: value for name, value in body.items() if name != "model"}


def completion(**message: Any) -> dict[str, Any]:
    """A chat's completion with everything that a response tells of."""
    logprobs = {"content": [TOKEN | {"top_logprobs": [TOKEN]}]}
    whole = {"role": "assistant", "content": "Rain.", "reasoning_content": "Hm."} | message
    return {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "pair",
        "choices": [{"index": 0, "message": whole, "logprobs": logprobs, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 7,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }


def test_a_text_and_a_list_are_chats() -> None:
    user = {"role": "user", "content": "hi"}
    assert chat() == {"messages": [user]}
    assert chat(instructions="Be short.") == {"messages": [{"role": "system", "content": "Be short."}, user]}
    parts = [{"type": "input_text", "text": "h"}, {"type": "input_text", "text": "i"}]
    assert chat(input=[{"role": "user", "content": parts}]) == {"messages": [user]}
    assert chat(input=[{"role": "developer", "content": "x"}, {"type": "message", **user}])["messages"][1] == user


def test_parameters_have_their_names_in_chats() -> None:
    assert (
        chat(max_output_tokens=9, temperature=0.5, top_p=0.9, metadata={"a": "b"}, user="ann", top_k=3).items()
        >= {
            "max_completion_tokens": 9,
            "temperature": 0.5,
            "top_p": 0.9,
            "metadata": {"a": "b"},
            "user": "ann",
            "top_k": 3,
        }.items()
    )
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    assert chat(text={"format": schema})["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    }
    assert chat(text={"format": {"type": "json_object"}})["response_format"] == {"type": "json_object"}
    assert "response_format" not in chat(text={"format": {"type": "text"}})
    assert chat(reasoning={"effort": "low"})["reasoning_effort"] == "low"
    assert (
        chat(include=["message.output_text.logprobs"], top_logprobs=2).items()
        >= {
            "logprobs": True,
            "top_logprobs": 2,
        }.items()
    )


def test_functions_and_their_calls() -> None:
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    body = chat(tools=[WEATHER], tool_choice={"type": "function", "name": "weather"}, parallel_tool_calls=False)
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert body["parallel_tool_calls"] is False
    assert chat(tools=[WEATHER], tool_choice="required")["tool_choice"] == "required"
    call = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"town": "Rome"}'}
    turns = [
        {"role": "user", "content": "Rome?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        call,
        call | {"call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
    ]
    calls = [
        {"id": id, "type": "function", "function": {"name": "weather", "arguments": '{"town": "Rome"}'}}
        for id in ("c1", "c2")
    ]
    assert chat(input=turns)["messages"][1:] == [
        {"role": "assistant", "reasoning_content": "Hm.", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "sun"},
    ]
    assert chat(input=[turns[0], turns[3]])["messages"][1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": calls[:1],
    }


def test_an_answer_can_be_asked_on() -> None:
    """Programs send `response.output` back as it is."""
    calls = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    output = response_of({}, completion(tool_calls=calls), "m")["output"]
    typed = Response.model_validate(response_of({}, completion(tool_calls=calls), "m")).output
    assert [type(item) for item in typed] == [ResponseReasoningItem, ResponseOutputMessage, ResponseFunctionToolCall]
    sent = [item.model_dump(exclude_unset=True) for item in typed]
    for items in (output, sent):
        assert chat(input=[{"role": "user", "content": "hi"}, *items])["messages"][1] == {
            "role": "assistant",
            "reasoning_content": "Hm.",
            "content": "Rain.",
            "tool_calls": calls,
        }


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported"),
        ({"conversation": "conv_1"}, "conversation is not supported"),
        ({"prompt": {"id": "p"}}, "prompt is not supported"),
        ({"stream": True}, "stream is not supported"),
        ({"background": True}, "background is not supported"),
        ({"truncation": "auto"}, "truncation is not supported"),
        ({"n": 2}, "n is not supported"),
        ({"messages": []}, "calls it input"),
        ({"max_tokens": 3}, "calls it max_output_tokens"),
        ({"response_format": {"type": "json_object"}}, "calls it text.format"),
        ({"max_output_tokens": 0}, "max_output_tokens must be a whole number"),
        ({"tools": [{"type": "web_search"}]}, "tool 1 has the type 'web_search'"),
        ({"tools": [WEATHER], "tool_choice": {"type": "mcp"}}, "tool_choice of type 'mcp'"),
        ({"text": {"format": "json"}}, "text.format must be an object"),
        ({"text": {"tone": "kind"}}, "text.tone is not supported"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode is not supported"),
        ({"input": None}, "has no input"),
        ({"input": 7}, "input must be a text or a list"),
        ({"input": ["hi"]}, "input 1 must be an object"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input 1 has the type 'item_reference'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "content of type 'input_image'"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "thoughts without their text"),
    ],
)
def test_what_is_not_here_is_refused_by_name(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(Fault) as error:
        chat_of({"model": "m", "input": "hi"} | asked)
    assert message in str(error.value)


def test_what_is_ignored_is_noted() -> None:
    item = {"role": "user", "content": "hi", "mood": "good"}
    asked = {"input": [item], "store": True, "include": ["file_search_call.results"], "reasoning": {"summary": "auto"}}
    said = chat_of(asked)[1]
    assert len(said) == 4
    for word in ("mood", "store", "file_search_call.results", "reasoning.summary"):
        assert sum(word in note for note in said) == 1
    assert chat_of({"input": "hi", "store": False, "stream": False, "background": None, "include": None})[1] == []


def test_a_response_tells_everything() -> None:
    asked = {
        "instructions": "Be short.",
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "name": "weather"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "max_output_tokens": 9,
    }
    response = Response.model_validate(response_of(asked, completion(), "gpt-4o-mini"), strict=True)
    assert (response.output_text, response.model, response.status) == ("Rain.", "gpt-4o-mini", "completed")
    assert (response.temperature, response.top_p, response.max_output_tokens) == (0.5, 1, 9)
    thoughts, message = response.output
    assert isinstance(thoughts, ResponseReasoningItem)
    assert thoughts.content
    assert thoughts.content[0].text == "Hm."
    assert isinstance(message, ResponseOutputMessage)
    assert message.content[0].type == "output_text"
    assert message.content[0].logprobs
    assert message.content[0].logprobs[0].top_logprobs[0].token == "a"
    assert response.usage
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (5, 7, 12)
    assert response.usage.input_tokens_details.cached_tokens == 3
    assert response.usage.output_tokens_details.reasoning_tokens == 2
    assert response.metadata == {"a": "b"}
    assert response.reasoning
    assert response.reasoning.effort == "low"

    cut = completion(reasoning_content=None)
    cut["choices"][0] |= {"finish_reason": "length", "logprobs": None}
    response = Response.model_validate(response_of({}, cut, "m"), strict=True)
    assert response.status == "incomplete"
    assert response.incomplete_details
    assert response.incomplete_details.reason == "max_output_tokens"
    assert [item.type for item in response.output] == ["message"]
    assert response.output[0].status == "incomplete"  # pyright: ignore[reportAttributeAccessIssue] -- a message


@pytest.fixture(scope="module")
def client(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A client of a server where `small` is a name of the one pair that works."""
    folder = tmp_path_factory.mktemp("served")
    server = Server(Shell(folder, folder / "home"), redis_server.url, "--alias", f"small={PAIR}")
    server.start()
    with worker(redis_server.url, redis_server.folder / "spool"):
        yield server.client()
    assert server.stop() == 0


def test_a_response_by_openais_client(client: OpenAI) -> None:
    raw = client.responses.with_raw_response.create(
        model="small",
        instructions="Be short.",
        input=[{"role": "user", "content": [{"type": "input_text", "text": "say it"}]}],
        max_output_tokens=3,
        store=True,
    )
    response = raw.parse()
    Response.model_validate(orjson.loads(raw.text), strict=True)
    assert response.output_text == "word0 word1 word2"
    assert (response.model, response.status) == ("small", "incomplete")
    assert response.instructions == "Be short."
    assert "store is ignored" in orjson.loads(raw.headers["x-draftmill-notes"])[0]
    raw = client.responses.with_raw_response.create(model="small", input="say it", max_output_tokens=1, store=False)
    assert (raw.parse().output_text, "x-draftmill-notes" in raw.headers) == ("word0", False)
    raw = client.responses.with_raw_response.create(
        model="small", input="say it", max_output_tokens=1, store=False, extra_body={"thinking_budget": 5}
    )
    told = orjson.loads(raw.text)["draftmill"]["notes"]
    assert "thinking_budget" in told[0]
    assert orjson.loads(raw.headers["x-draftmill-notes"]) == told
    for wrong in ({"previous_response_id": "resp_1"}, {"tools": [{"type": "web_search"}]}, {"temperature": 9}):
        with pytest.raises(openai.BadRequestError) as error:
            client.responses.create(**{"model": "small", "input": "say it"} | wrong)  # pyright: ignore[reportCallIssue, reportArgumentType] -- wrong ones
        assert refused(error.value)[:2] == (400, "invalid_request")
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(model="small", input="say it", stream=True)
    assert refused(error.value) == (400, "unsupported_value", "stream")
    with pytest.raises(openai.NotFoundError) as not_found:
        client.responses.retrieve("resp_1")
    assert refused(not_found.value) == (404, "unknown_url", None)


def test_a_batch_of_responses(client: OpenAI) -> None:
    def line(id: str, **body: Any) -> dict[str, Any]:
        body = {"model": "small", "input": f"say {id}", "max_output_tokens": 3} | body
        return {"custom_id": id, "method": "POST", "url": "/v1/responses", "body": body}

    good = [line(f"r-{n}", metadata={"n": f"{n}"}, store=n > 2) for n in range(5)]
    content = b"\xef\xbb\xbf" + jsonl(*good[:3]) + b"\n" + jsonl(*good[3:], line("bad", previous_response_id="resp_1"))
    batch = wait(client, create(client, content, endpoint="/v1/responses").id)
    assert (batch.status, counts(batch), batch.model) == ("completed", (6, 5, 1), "small")
    out = lines(client, batch.output_file_id)
    for n in range(5):
        response = Response.model_validate(out[f"r-{n}"]["response"]["body"], strict=True)
        assert (response.output_text, response.metadata) == ("word0 word1 word2", {"n": f"{n}"})
        assert response.model == "small"
    refusal = lines(client, batch.error_file_id)["bad"]["response"]
    assert (refusal["status_code"], "previous_response_id" in refusal["body"]["error"]["message"]) == (400, True)
    assert batch.model_extra
    assert batch.model_extra["draftmill"]["notes"] == ["store is ignored: responses are not kept (2 lines)"]
    assert batch.usage
    assert batch.usage.output_tokens == 15
