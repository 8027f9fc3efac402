"""Files that run on OpenAI's Batch API or by `vllm run-batch` run here: 200 lines, by OpenAI's client, unmodified.

A real server process, a real Redis, and a real worker with a model that loads at once. What comes back is validated by
OpenAI's own types, and by what each request asked for.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from jsonschema import validate as validate_json
from openai import OpenAI
from openai.types import Batch, Completion
from openai.types.chat import ChatCompletion, ChatCompletionMessageFunctionToolCall
from openai.types.chat.chat_completion import Choice
from openai.types.responses import Response

from tests.producer.conftest import Shell
from tests.producer.web.real_lines import (
    CHAT,
    OPENAI_MODEL,
    TEXT,
    VLLM_MODEL,
    WEATHER,
    Body,
    by_url,
    openai_lines,
    vllm_lines,
)
from tests.producer.web.serving import Server, create, jsonl, lines, wait
from tests.producer.web.talking_model import talking_model
from tests.redis_server import RedisServer


@pytest.fixture(scope="module")
def client(redis_server: RedisServer, boxed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A client of a server where both models are names of the one that a worker has."""
    model = talking_model(boxed_model, tmp_path_factory.mktemp("model"))
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as home:
        shell = Shell(tmp_path_factory.mktemp("served"), Path(home))
        aliases = [part for name in (OPENAI_MODEL, VLLM_MODEL) for part in ("--alias", f"{name}={model}")]
        server = Server(shell, redis_server.url, *aliases)
        server.start()
        with (shell.folder / "worker.log").open("wb") as log:
            worker = shell.start("worker", "--pair", model, "--redis-url", redis_server.url, stderr=log)
            try:
                yield server.client()
            finally:
                worker.kill()
                worker.communicate()
                server.kill()


@pytest.mark.parametrize("made", [openai_lines(), vllm_lines()], ids=["openai", "vllm"])
def test_every_line_runs_and_means_what_it_says(client: OpenAI, made: list[Body]) -> None:
    assert len(made) == 100
    refused: set[str] = set()
    started = {url: (create(client, jsonl(*asked), endpoint=url).id, asked) for url, asked in by_url(made)}
    for url, (id, asked) in started.items():
        batch = wait(client, id, seconds=240)
        assert (batch.status, batch.model) == ("completed", asked[0]["body"]["model"])
        Batch.model_validate(batch.model_dump(), strict=True)
        out, errors = lines(client, batch.output_file_id), lines(client, batch.error_file_id)
        assert out.keys() | errors.keys() == {line["custom_id"] for line in asked}
        refused |= {_named(errors[line["custom_id"]], line["body"]) for line in asked if line["custom_id"] in errors}
        for line in asked:
            if line["custom_id"] in out:
                answer = out[line["custom_id"]]
                assert (answer["error"], answer["response"]["status_code"]) == (None, 200)
                check(url, line["body"], answer["response"]["body"])
    assert not refused, ", ".join(sorted(refused))


def _named(error: Body, asked: Body) -> str:
    """The field that an error is about."""
    message = error["response"]["body"]["error"]["message"]
    return next((name for name in asked if re.search(rf"\b{name}\b", message)), message)


def check(url: str, asked: Body, answer: Body) -> None:
    """The answer has OpenAI's form, and what the request asked for."""
    assert answer["model"] == asked["model"]
    if url == CHAT:
        chat = ChatCompletion.model_validate(answer, strict=True)
        assert [choice.index for choice in chat.choices] == list(range(asked.get("n", 1)))
        for choice in chat.choices:
            check_chat(asked, choice)
        assert chat.usage
        check_length(asked, len(chat.choices), chat.usage.completion_tokens)
    elif url == TEXT:
        completion = Completion.model_validate(answer, strict=True)
        check_text(asked, completion)
    else:
        response = Response.model_validate(answer, strict=True)
        assert response.status in ("completed", "incomplete")
        if "text" in asked and response.status == "completed":
            check_json(asked["text"]["format"]["schema"], response.output_text)


def check_length(asked: Body, choices: int, tokens: int) -> None:
    most = asked.get("max_completion_tokens") or asked["max_tokens"]
    assert choices * asked.get("min_tokens", 0) <= tokens <= choices * most
    if asked.get("ignore_eos"):
        assert tokens == choices * most


def check_chat(asked: Body, choice: Choice) -> None:
    message, said = choice.message, choice.message.content or ""
    check_stops(asked, said)
    if asked.get("logprobs"):
        assert choice.logprobs
        assert choice.logprobs.content
        for token in choice.logprobs.content:
            assert token.logprob <= 0
            assert len(token.top_logprobs) == asked.get("top_logprobs", 0)
    else:
        assert choice.logprobs is None
    forced = asked.get("tool_choice") not in (None, "auto", "none")
    for call in message.tool_calls or []:
        assert isinstance(call, ChatCompletionMessageFunctionToolCall)
        assert call.function.name in [tool["function"]["name"] for tool in asked["tools"]]
    if forced and choice.finish_reason != "length":
        assert choice.finish_reason == "tool_calls"
        call = (message.tool_calls or [])[0]
        assert isinstance(call, ChatCompletionMessageFunctionToolCall)
        check_json(WEATHER["function"]["parameters"], call.function.arguments)
    if choice.finish_reason == "stop":
        check_grammar(asked, said)
    thoughts = (message.model_extra or {}).get("reasoning_content")
    thinks = asked.get("chat_template_kwargs", {}).get("enable_thinking", asked.get("reasoning_effort") != "none")
    assert thinks or not thoughts


def check_grammar(asked: Body, said: str) -> None:
    """A whole answer is what the request allows."""
    structured: Body = asked.get("structured_outputs", {})
    schema: Any = asked.get("guided_json") or structured.get("json")
    match asked.get("response_format"):
        case {"type": "json_schema", "json_schema": {"schema": given}}:
            schema = given
        case {"type": "json_object"}:
            schema = {"type": "object"}
        case _:
            pass
    if schema:
        check_json(schema, said)
    if choices := asked.get("guided_choice") or structured.get("choice"):
        assert said in choices
    if "guided_grammar" in asked:
        assert said in ("yes", "no")
    if "guided_regex" in asked:
        assert re.fullmatch(asked["guided_regex"], said)


def check_json(schema: Any, said: str) -> None:
    validate_json(orjson.loads(said), schema)


def check_text(asked: Body, completion: Completion) -> None:
    prompts = asked["prompt"]
    prompts = prompts if isinstance(prompts, list) and not isinstance(prompts[0], int) else [prompts]
    assert [choice.index for choice in completion.choices] == list(range(len(prompts) * asked.get("n", 1)))
    for choice in completion.choices:
        check_stops(asked, choice.text)
        if asked.get("echo"):
            assert choice.text.startswith(asked["prompt"])
        assert (choice.logprobs is not None) == ("logprobs" in asked)
        if choice.logprobs:
            assert choice.logprobs.tokens
            assert choice.logprobs.token_logprobs
            assert choice.logprobs.top_logprobs
            count = len(choice.logprobs.tokens)
            assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.top_logprobs) == count
    assert completion.usage
    check_length(asked, len(completion.choices), completion.usage.completion_tokens)


def check_stops(asked: Body, said: str) -> None:
    """A stop string is the end of what was said, and stands there only if that was asked for."""
    stops = asked.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        head, found, tail = said.partition(stop)
        assert not found or (asked.get("include_stop_str_in_output") and not tail), (said, stop, head)
