"""Result lines are what OpenAI's own types say, for every kind of request; completions are made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletion

from draftmill.engine.request import Completion, Request, RequestError, TokenLogprob
from draftmill.engine.text import Text
from draftmill.producer.queue.leases import Claimed
from draftmill.producer.queue.result import Result
from draftmill.producer.queue.wire import Grammar, JobBody, Message, Sampling, Tools
from draftmill.worker import jobs, results
from tests.engine.tokenizers import OPENS, TOOLS, llama, smollm, with_template

JOB = Claimed("b-1", b"", "t.1", "b", "r-1", 0.0)
ASKED = (Message(role="user", content="How is Ulm?"),)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'


def body(**fields: Any) -> JobBody:
    made = JobBody(batch="b", custom_id="r-1", pair="p", **fields)
    return JobBody.model_validate(orjson.loads(orjson.dumps(made.model_dump())))  # as it goes through the queue


def line(asked: JobBody, text: Text, written: Sequence[str], **of_completion: Any) -> dict[str, Any]:
    """The result line, of which OpenAI's types have read the body, for a job that wrote this."""
    job = jobs.asked(JOB, asked, text)
    completions = []
    for request, said in zip(job.requests, written, strict=True):
        tokens = tuple(text.tokenizer.encode(said, add_special_tokens=False))
        shown = text.decode(tokens)
        given: dict[str, Any] = {"finish_reason": "stop", "prompt_tokens": len(request.tokens)} | of_completion
        if request.sampling.logprobs is not None:
            given["logprobs"] = tuple(logprob(token, request) for token in tokens)
        completions.append(Completion(request.id, shown, tokens, **given))
    outcome = results.completed(JOB, asked, job, completions, text)
    assert outcome.status == "done"
    found = orjson.loads(outcome.line)
    answer = found["response"]["body"]
    (TextCompletion if asked.messages is None else ChatCompletion).model_validate(answer, strict=True)
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(written)))
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (
        answer["usage"]["prompt_tokens"],
        answer["usage"]["completion_tokens"],
    )
    return found


def logprob(token: int, request: Request) -> TokenLogprob:
    count = request.sampling.logprobs or 0
    return TokenLogprob(token, -0.5, tuple((token + n, -0.5 * (n + 1)) for n in range(count)))


def parsed(found: dict[str, Any]) -> Result:
    return Result.parse("1-0", orjson.dumps(found), 1)


def test_thoughts_have_fields_of_their_own() -> None:
    text = Text(with_template(OPENS))
    found = line(body(messages=ASKED), text, ["I see.\n</think>\n\nSunny."])
    (choice,) = found["response"]["body"]["choices"]
    said = {"role": "assistant", "content": "Sunny.", "reasoning_content": "I see.", "reasoning": "I see."}
    assert choice["message"] == said
    thoughts = len(text.tokenizer.encode("I see.\n", add_special_tokens=False))
    assert found["response"]["body"]["usage"]["completion_tokens_details"] == {"reasoning_tokens": thoughts}
    result = parsed(found)
    assert (result.text, result.reasoning, result.usage and result.usage.reasoning_tokens) == (
        "Sunny.",
        "I see.",
        thoughts,
    )
    off = line(body(messages=ASKED, template={"enable_thinking": False}), text, ["Sunny."])
    assert off["response"]["body"]["choices"][0]["message"] == {"role": "assistant", "content": "Sunny."}
    assert "completion_tokens_details" not in off["response"]["body"]["usage"]
    assert "draftmill" not in off["response"]["body"]


def test_calls_of_tools() -> None:
    text = Text(with_template(TOOLS))
    asked = body(messages=ASKED, tools=Tools(tools=(WEATHER,)), n=2, template={"enable_thinking": False})
    first, second = (
        choice["message"] for choice in line(asked, text, [f"{CALL}\n{CALL}", CALL])["response"]["body"]["choices"]
    )
    calls = [*first["tool_calls"], *second["tool_calls"]]
    assert first["content"] is None
    assert [call["function"] for call in calls] == [{"name": "weather", "arguments": '{"city": "Ulm"}'}] * 3
    assert len({call["id"] for call in calls}) == 3
    again = line(asked, text, [f"{CALL}\n{CALL}", CALL])["response"]["body"]["choices"]
    assert [choice["message"] for choice in again] == [first, second]
    assert [choice["finish_reason"] for choice in again] == ["tool_calls"] * 2
    assert len(parsed(line(asked, text, [CALL, "No."])).tool_calls) == 1
    cut = line(asked, text, [CALL[:30], "No."], finish_reason="length")
    assert cut["response"]["body"]["choices"][0]["message"]["content"] == CALL[:30]
    assert cut["response"]["body"]["choices"][0]["finish_reason"] == "length"
    (note,) = parsed(cut).notes
    assert note.startswith("tools: ")


def test_required_calls_have_a_grammar_and_no_second_one() -> None:
    text, tools = Text(with_template(TOOLS)), Tools(tools=(WEATHER,), required=True)
    (request,) = jobs.asked(JOB, body(messages=ASKED, tools=tools), text).requests
    assert request.grammar
    assert request.grammar.kind == "lark"
    with pytest.raises(RequestError, match="tool_choice and response_format both say"):
        jobs.asked(JOB, body(messages=ASKED, tools=tools, grammar=Grammar(kind="regex", text="a")), text)
    with pytest.raises(RequestError, match="tool_choice names 'where'"):
        jobs.asked(JOB, body(messages=ASKED, tools=Tools(tools=(WEATHER,), named="where")), text)


def test_notes_of_all_choices_stand_in_the_line_once() -> None:
    asked = body(messages=ASKED, tools=Tools(tools=(WEATHER,)), n=2, template={"x": 1},
                 sampling=Sampling(thinking_budget=5))  # fmt: skip
    found = line(asked, Text(smollm()), ["Yes.", "No."])
    notes = found["response"]["body"]["draftmill"]["notes"]
    assert parsed(found).notes == tuple(notes)
    assert [note.partition(":")[0] for note in notes] == ["chat_template_kwargs", "tools", "thinking_budget", "tools"]
    plain = line(body(prompts=("a",), template={"enable_thinking": False}), Text(smollm()), ["Yes."])
    assert parsed(plain).notes == ("chat_template_kwargs: a plain prompt goes through no chat template",)


def test_log_probabilities_of_a_chat() -> None:
    text = Text(llama())
    text.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    asked = body(messages=ASKED, sampling=Sampling(logprobs=3))
    (choice,) = line(asked, text, ["für 🗼"])["response"]["body"]["choices"]
    tokens = choice["logprobs"]["content"]
    assert bytes(byte for token in tokens for byte in token["bytes"]).decode().lstrip() == "für 🗼"
    assert [token["token"] for token in tokens if token["token"] == "\ufffd"]
    assert all(len(token["top_logprobs"]) == 3 and token["top_logprobs"][0]["logprob"] == -0.5 for token in tokens)


@pytest.mark.parametrize("echo", [False, True])
def test_log_probabilities_of_a_text(echo: bool) -> None:
    text = Text(smollm())
    asked = body(prompts=("Once upon",), echo=echo, sampling=Sampling(logprobs=2))
    (choice,) = line(asked, text, [" a 🗼 tower"])["response"]["body"]["choices"]
    found = choice["logprobs"]
    assert choice["text"] == ("Once upon" if echo else "") + " a 🗼 tower"
    assert {len(found[name]) for name in found} == {len(found["tokens"])}
    assert found["token_logprobs"] == [-0.5] * len(found["tokens"])
    assert all(len(likeliest) == 2 for likeliest in found["top_logprobs"])
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if token.startswith("bytes:"):
            assert choice["text"][offset] == (" " if token.startswith("bytes:\\x20") else "🗼")
        else:
            assert choice["text"][offset:].startswith(token)
    parts = "".join(token.removeprefix("bytes:") for token in found["tokens"] if token.startswith("bytes:"))
    assert bytes.fromhex(parts.replace("\\x", "")).decode() == " 🗼"


def test_a_token_that_cannot_be_has_the_api_s_least_number() -> None:
    text = Text(smollm())
    asked = jobs.asked(JOB, body(prompts=("x",), sampling=Sampling(logprobs=0)), text)
    done = Completion("r", "a", (81,), "stop", 1, logprobs=(TokenLogprob(81, -math.inf),))
    outcome = results.completed(JOB, body(prompts=("x",)), asked, [done], text)
    found = orjson.loads(outcome.line)["response"]["body"]["choices"][0]["logprobs"]
    assert found["token_logprobs"] == [-9999.0]
    assert json.dumps(found, allow_nan=False)


def test_lists_of_prompts_and_several_choices() -> None:
    text = Text(smollm())
    asked = body(prompts=("Once", (5, 6, 7)), n=2, echo=True, sampling=Sampling(seed=2**63 - 1))
    job = jobs.asked(JOB, asked, text)
    assert [request.id for request in job.requests] == ["b-1/0", "b-1/1", "b-1/2", "b-1/3"]
    assert [request.sampling.seed for request in job.requests] == [2**63 - 1, 0, 2**63 - 1, 0]
    assert job.requests[3].tokens == (5, 6, 7)
    found = line(asked, text, ["a", "b", "c", "d"], cached_tokens=1, drafted=8, accepted=4, rounds=2)
    answer = found["response"]["body"]
    prefix = text.decode((5, 6, 7))
    assert [choice["text"] for choice in answer["choices"]] == ["Oncea", "Onceb", f"{prefix}c", f"{prefix}d"]
    prompts = len(job.requests[0].tokens) + 3
    assert answer["usage"] == {
        "prompt_tokens": prompts,
        "completion_tokens": 4,
        "total_tokens": prompts + 4,
        "prompt_tokens_details": {"cached_tokens": 2},
        "tokens_per_round": 3.0,
        "completion_tokens_details": {"accepted_prediction_tokens": 16, "rejected_prediction_tokens": 16},
    }
    assert [choice.text for choice in parsed(found).choices] == ["Oncea", "Onceb", f"{prefix}c", f"{prefix}d"]
    unseeded = jobs.asked(JOB, body(prompts=("a", "a"), n=2), text)
    seeds = [request.sampling.seed for request in unseeded.requests]
    assert len(set(seeds)) == 4
    assert seeds[:2] == [jobs.derived_seed("b-1"), jobs.derived_seed("b-1") + 1]
