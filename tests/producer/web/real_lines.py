"""Lines of requests as programs really have them: 100 for OpenAI's Batch API, and 100 for `vllm run-batch`.

Their forms are those of the two documentations; the models that they name are theirs, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

OPENAI_MODEL, VLLM_MODEL = "gpt-4o-mini", "meta-llama/Meta-Llama-3-8B-Instruct"
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"

Body = dict[str, Any]

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
USER = {"role": "user", "content": "Hello world!"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a given location",
        "parameters": {
            "type": "object",
            "properties": {"unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALLS = [{"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"unit":"celsius"}'}}]
TURNS = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees"},
]
SENTIMENT = {
    "type": "object",
    "properties": {"good": {"type": "boolean"}},
    "required": ["good"],
    "additionalProperties": False,
}
STRICT = {"type": "json_schema", "json_schema": {"name": "sentiment", "strict": True, "schema": SENTIMENT}}
QUIET = {"chat_template_kwargs": {"enable_thinking": False}}


def chat(**body: Any) -> tuple[str, Body]:
    return CHAT, {"messages": [SYSTEM, USER]} | body


def text(prompt: Any, **body: Any) -> tuple[str, Body]:
    return TEXT, {"prompt": prompt, "max_tokens": 6} | body


OPENAI = (
    chat(max_tokens=8),
    chat(max_completion_tokens=8, temperature=0.7, top_p=0.9, seed=42),
    chat(max_tokens=6, messages=[{"role": "developer", "content": "Be brief."}, USER | {"name": "ann"}]),
    chat(max_tokens=6, messages=[{"role": "user", "content": [{"type": "text", "text": "Hello world!"}]}]),
    chat(max_tokens=8, stop=["a", "\n"]),
    chat(max_tokens=8, stop="e", presence_penalty=0.5, frequency_penalty=-0.5),
    chat(max_tokens=6, logit_bias={"1234": 5, "42": -100}),
    chat(max_tokens=4, n=3, temperature=1),
    chat(max_tokens=6, logprobs=True, top_logprobs=3),
    chat(max_tokens=6, logprobs=True, temperature=1, reasoning_effort="none"),
    chat(max_tokens=16, response_format=STRICT, reasoning_effort="none"),
    chat(max_tokens=8, response_format={"type": "json_object"}, reasoning_effort="none"),
    chat(max_tokens=6, tools=[WEATHER, CLOCK], tool_choice="auto"),
    chat(max_tokens=40, tools=[WEATHER], tool_choice="required", reasoning_effort="none"),
    chat(max_tokens=40, tools=[WEATHER, CLOCK], tool_choice=NAMED, parallel_tool_calls=False, reasoning_effort="none"),
    chat(max_tokens=6, tools=[WEATHER], messages=TURNS),
    chat(max_tokens=6, store=True, metadata={"for": "a test"}, user="ann", service_tier="auto", reasoning_effort="low"),
    text("Once upon a time", stop=["."], best_of=1, suffix=None),
    text("Once upon a time", logprobs=2, echo=False, n=2, temperature=1),
    text(["One", "Two", "Three"], max_tokens=4),
    text([504, 265, 253, 655], max_tokens=4),
    text([[504, 265], [253, 655, 12]], max_tokens=4, seed=7),
    text("Once upon a time", echo=True, max_tokens=4),
    (RESPONSES, {"input": "Hello world!", "max_output_tokens": 6, "store": False}),
    (
        RESPONSES,
        {
            "instructions": "Be brief.",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello world!"}]}],
            "max_output_tokens": 16,
            "text": {"format": {"type": "json_schema", "name": "sentiment", "strict": True, "schema": SENTIMENT}},
            "reasoning": {"effort": "none"},
        },
    ),
)

VLLM = (
    chat(max_completion_tokens=8),
    chat(max_tokens=8, temperature=0.8, top_k=20, min_p=0.05, seed=1),
    chat(max_tokens=8, top_k=-1, repetition_penalty=1.2),
    chat(max_tokens=8, presence_penalty=1.5, frequency_penalty=0.5, temperature=0.6, top_p=0.95),
    chat(max_tokens=8, **QUIET),
    chat(max_tokens=8, chat_template_kwargs={"enable_thinking": True}),
    chat(max_tokens=8, stop_token_ids=[13, 198], stop=["the"], include_stop_str_in_output=True),
    chat(max_tokens=8, ignore_eos=True),
    chat(max_tokens=8, min_tokens=4, skip_special_tokens=True, spaces_between_special_tokens=True),
    chat(max_tokens=8, bad_words=["the", "a"]),
    chat(max_tokens=6, allowed_token_ids=[28, 29, 30, 31], **QUIET),
    chat(max_tokens=4, n=2, logprobs=True, top_logprobs=2, temperature=1.0),
    chat(max_tokens=16, guided_json=SENTIMENT, **QUIET),
    chat(max_tokens=8, guided_regex="[0-9]{2}", **QUIET),
    chat(max_tokens=8, guided_choice=["yes", "no"], **QUIET),
    chat(max_tokens=8, guided_grammar='start: "yes" | "no"', **QUIET),
    chat(max_tokens=16, structured_outputs={"json": SENTIMENT}, **QUIET),
    chat(max_tokens=8, structured_outputs={"choice": ["left", "right"]}, **QUIET),
    chat(max_tokens=16, response_format=STRICT, **QUIET),
    chat(max_tokens=40, tools=[WEATHER], tool_choice="required", **QUIET),
    chat(max_tokens=6, tools=[WEATHER], tool_choice="none", messages=TURNS),
    chat(
        max_tokens=6,
        messages=[USER, {"role": "assistant", "content": "Well,"}],
        add_generation_prompt=False,
        continue_final_message=True,
    ),
    text("Once upon a time", min_tokens=3, repetition_penalty=1.1, top_k=5, temperature=0.5),
    text(["One", "Two"], max_tokens=4, n=2, seed=3, temperature=1),
    text([[504, 265], [253, 655, 12]], max_tokens=4, logprobs=1, stop_token_ids=[13]),
)


def openai_lines(count: int = 100) -> list[Body]:
    return _lines("openai", OPENAI, OPENAI_MODEL, count)


def vllm_lines(count: int = 100) -> list[Body]:
    return _lines("vllm", VLLM, VLLM_MODEL, count)


def _lines(name: str, forms: tuple[tuple[str, Body], ...], model: str, count: int) -> list[Body]:
    """So many lines: each form in turn, each time for another prompt."""
    return [
        {"custom_id": f"{name}-{n}", "method": "POST", "url": url, "body": {"model": model} | _numbered(body, n)}
        for n, (url, body) in enumerate(islice(cycle(forms), count))
    ]


def _numbered(body: Body, n: int) -> Body:
    if "messages" not in body:
        return body
    first, *rest = body["messages"]
    if isinstance(first["content"], str):
        first = first | {"content": f"{first['content']} ({n})"}
    return body | {"messages": [first, *rest]}


def by_url(lines: list[Body]) -> Iterator[tuple[str, list[Body]]]:
    """The lines of each endpoint; a batch has one."""
    for url in (CHAT, TEXT, RESPONSES):
        if found := [line for line in lines if line["url"] == url]:
            yield url, found
