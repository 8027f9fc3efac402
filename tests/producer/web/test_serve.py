"""`draftmill serve` as OpenAI's own client sees it: a real server process, a real Redis, a real worker process."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest
import redis as redis_py
from openai import OpenAI
from openai.types import Batch

from draftmill.producer.queue import batches
from tests.producer.conftest import Shell
from tests.producer.web.serving import (
    ENDED,
    MESSAGES,
    PAIR,
    Server,
    counts,
    create,
    jsonl,
    lines,
    refused,
    request,
    wait,
    wait_until,
    worker,
)
from tests.redis_server import RedisServer

KEYS = "# two users\nann:key-of-ann\nbob:key-of-bob\n"


@pytest.fixture(scope="module")
def served(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two users, and a worker that it may use."""
    folder = tmp_path_factory.mktemp("served")
    shell = Shell(folder, folder / "home")
    server = Server(shell, redis_server.url, "--api-key-file", shell.write("keys", KEYS))
    server.start()
    with worker(redis_server.url, redis_server.folder / "spool"):
        yield server
    assert server.stop() == 0


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[redis_py.Redis]:
    """As it is: the worker that all tests share is registered there."""
    with redis_server.connect() as client:
        yield client


@pytest.fixture
def client(served: Server) -> OpenAI:
    return served.client()


def test_a_batch_from_upload_to_download(client: OpenAI, redis: redis_py.Redis) -> None:
    wrong = [request("hot", temperature=9), request("long", prompt="word " * 2000), request("tools", tools=[{}])]
    content = jsonl(*(request(f"r-{n}") for n in range(40)), *wrong)
    file = client.files.create(file=("input.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.purpose, file.status) == (len(content), "input.jsonl", "batch", "processed")
    assert client.files.content(file.id).read() == content

    made = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"for": "a test"},
    )
    assert made.status == "validating"
    assert made.expires_at == made.created_at + 86400
    batch = wait(client, made.id)

    assert batch.status == "completed"
    assert counts(batch) == (43, 40, 3)
    assert (batch.model, batch.metadata, batch.errors) == (PAIR, {"for": "a test"}, None)
    assert batch.in_progress_at
    assert batch.finalizing_at
    assert batch.completed_at
    assert made.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert batch.usage
    assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (80, 120, 200)

    out = lines(client, batch.output_file_id)
    assert out.keys() == {f"r-{n}" for n in range(40)}
    for line in out.values():
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        assert line["response"]["body"]["choices"][0]["message"]["content"] == "word0 word1 word2"
        assert line["response"]["body"]["model"] == PAIR
    errors = lines(client, batch.error_file_id)
    assert errors.keys() == {"hot", "long", "tools"}
    assert all(line["response"]["status_code"] == 400 for line in errors.values())
    assert "temperature is 9" in errors["hot"]["response"]["body"]["error"]["message"]
    assert "2000 tokens" in errors["long"]["response"]["body"]["error"]["message"]
    assert batches.status(redis, batch.id) is None, "Redis keeps nothing of a batch that has ended"

    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_two_batches_of_one_file_are_two(client: OpenAI) -> None:
    file = client.files.create(file=("input.jsonl", jsonl(request("a"))), purpose="batch")
    made = [
        client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        for _ in range(2)
    ]
    client.files.delete(file.id)  # they have the file already
    ended = [wait(client, batch.id) for batch in made]
    assert len({batch.id for batch in ended}) == len({batch.output_file_id for batch in ended}) == 2
    assert all(lines(client, batch.output_file_id).keys() == {"a"} for batch in ended)


def test_cancel(client: OpenAI) -> None:
    content = jsonl(*(request(f"r-{n}", tokens=3 if n < 8 else 100_000) for n in range(500)))
    made = create(client, content)
    wait(client, made.id, lambda batch: counts(batch)[1] == 8)
    cancelling = client.batches.cancel(made.id)
    assert (cancelling.status, cancelling.cancelled_at) == ("cancelling", None)
    batch = wait(client, made.id)
    assert batch.status == "cancelled"
    assert batch.cancelling_at
    assert batch.cancelled_at
    assert counts(batch) == (500, 8, 0)
    assert lines(client, batch.output_file_id).keys() == {f"r-{n}" for n in range(8)}
    errors = lines(client, batch.error_file_id)
    assert errors.keys() == {f"r-{n}" for n in range(8, 500)}
    assert {line["error"]["code"] for line in errors.values()} == {"batch_cancelled"}
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a batch with status 'cancelled'"):
        client.batches.cancel(made.id)


def test_cancel_at_once(client: OpenAI) -> None:
    """While it is validated, or hardly queued: each of its lines gets an error."""
    made = create(client, jsonl(*(request(f"r-{n}", tokens=100_000) for n in range(2000))))
    assert client.batches.cancel(made.id).status == "cancelling"
    assert client.batches.cancel(made.id).status == "cancelling", "asking twice is harmless"
    batch = wait(client, made.id)
    assert (batch.status, counts(batch), batch.output_file_id) == ("cancelled", (2000, 0, 0), None)
    errors = lines(client, batch.error_file_id)
    assert errors.keys() == {f"r-{n}" for n in range(2000)}
    assert {line["error"]["code"] for line in errors.values()} == {"batch_cancelled"}


def test_what_the_window_leaves_unfinished_expires(client: OpenAI) -> None:
    made = create(client, jsonl(request("short"), request("long", tokens=100_000)), window="2s")
    batch = wait(client, made.id)
    assert batch.status == "expired"
    assert batch.expires_at
    assert batch.expired_at
    assert batch.expired_at >= batch.expires_at
    assert lines(client, batch.output_file_id).keys() == {"short"}
    assert lines(client, batch.error_file_id)["long"]["error"]["code"] == "batch_expired"


def test_the_async_client_and_text_completions(served: Server) -> None:
    async def run() -> tuple[Batch, str]:
        async with openai.AsyncOpenAI(api_key="key-of-ann", base_url=served.base) as client:
            line = {"custom_id": "t", "method": "POST", "url": "/v1/completions"}
            content = jsonl(line | {"body": {"model": PAIR, "prompt": "go on", "max_tokens": 2}})
            file = await client.files.create(file=("input.jsonl", content), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
            )
            while batch.status not in ENDED:
                await asyncio.sleep(0.05)
                batch = await client.batches.retrieve(batch.id)
            assert batch.output_file_id
            return batch, (await client.files.content(batch.output_file_id)).text

    batch, content = asyncio.run(run())
    assert batch.status == "completed"
    body = orjson.loads(content)["response"]["body"]
    assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "word0 word1")


def test_lists_in_pages(served: Server, redis_server: RedisServer) -> None:
    client = served.client("key-of-bob")
    made = [create(client, jsonl(request("a"))).id for _ in range(5)]
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]
    first = client.batches.list(limit=2)
    assert first.has_more
    assert not client.batches.list(limit=2, after=made[1]).has_more
    for id in made:
        wait(client, id)
    inputs = [file.id for file in client.files.list(purpose="batch", order="asc")]
    assert len(inputs) == 5
    assert [file.id for file in client.files.list(purpose="batch", limit=2, order="asc")] == inputs
    assert {file.purpose for file in client.files.list()} == {"batch", "batch_output"}
    with pytest.raises(openai.BadRequestError) as error:
        client.batches.list(limit=101)
    assert refused(error.value) == (400, "invalid_value", "limit")


def test_models(client: OpenAI) -> None:
    from draftmill.engine.models.pairs import PAIRS

    names = [model.id for model in client.models.list()]
    assert names[0] == PAIR, "a live worker serves it"
    assert set(names) == {PAIR, *PAIRS}
    assert client.models.retrieve("Qwen3-4B").id == "qwen3-4b"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("owner/none")
    assert refused(error.value) == (404, "model_not_found", "model")


def test_a_chat_completion_is_queued_and_waited_for(client: OpenAI, redis: redis_py.Redis) -> None:
    chat = client.chat.completions.create(model=PAIR, messages=MESSAGES, max_tokens=4)
    assert chat.choices[0].message.content == "word0 word1 word2 word3"
    assert chat.choices[0].finish_reason == "length"
    assert chat.usage
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (2, 4)
    text = client.completions.create(model=PAIR, prompt="go on", max_tokens=2)
    assert text.choices[0].text == "word0 word1"

    asked: list[tuple[dict[str, Any], tuple[int, str | None, str | None]]] = [
        ({"stream": True}, (400, "unsupported_value", "stream")),
        ({"model": "gpt-4o"}, (404, "model_not_found", "model")),
        ({"temperature": 9}, (400, "invalid_request", None)),
        ({"presence_penalty": 3}, (400, "invalid_request", None)),
        ({"extra_body": {"xtc_probability": 0.5}}, (400, "invalid_request", None)),
        ({"functions": [{"name": "a"}]}, (400, "invalid_request", None)),
        ({"extra_body": {"use_beam_search": True}}, (400, "invalid_request", None)),
        ({"response_format": {"type": "grammar"}}, (400, "invalid_request", None)),
        ({"messages": []}, (400, "invalid_request", None)),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, (400, "invalid_request", None)),
    ]
    for wrong, expected in asked:
        with pytest.raises(openai.APIStatusError) as error:
            client.chat.completions.create(**{"model": PAIR, "messages": MESSAGES} | wrong)
        assert refused(error.value) == expected
    wait_until(lambda: not batches.list_batches(redis))


def test_a_call_whose_client_leaves_is_cancelled(served: Server, redis: redis_py.Redis) -> None:
    with pytest.raises(openai.APITimeoutError):
        served.client(timeout=0.5).chat.completions.create(model=PAIR, messages=MESSAGES, max_tokens=100_000)
    assert [state.priority for state in batches.list_batches(redis)] == ["high"]
    wait_until(lambda: not batches.list_batches(redis))


def test_keys(served: Server) -> None:
    ann, bob = served.client(), served.client("key-of-bob")
    for key in (b"key-of-eve", b"key-of-ann-", "key-of-änn".encode()):
        answer = httpx.get(f"{served.base}/models", headers=[(b"Authorization", b"Bearer " + key)])
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError) as error:
        served.client("wrong").files.list()
    assert refused(error.value) == (401, "invalid_api_key", None)
    assert httpx.get(f"{served.base}/files").status_code == 401

    batch = wait(ann, create(ann, jsonl(request("a"))).id)
    assert batch.output_file_id
    calls: list[Callable[[], object]] = [
        lambda: bob.batches.retrieve(batch.id),
        lambda: bob.batches.cancel(batch.id),
        lambda: bob.files.content(batch.output_file_id or ""),
        lambda: bob.files.delete(batch.input_file_id),
        lambda: bob.batches.create(
            input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
        ),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError):
            call()
    assert batch.id not in [other.id for other in bob.batches.list()]


MALFORMED: list[tuple[str, bytes, list[tuple[str, int | None, str | None]]]] = [
    ("empty", b"\n\n", [("empty_file", None, None)]),
    ("not JSON", jsonl(request("a")) + b"\n{oops\n[1]\n", [("invalid_json_line", n, None) for n in (3, 4)]),
    ("an array", b"[\n" + jsonl(request("a")) + b"]\n", [("invalid_json_line", None, None)]),
    ("not UTF-8", b'{"custom_id": "\xff"}\n', [("invalid_json_line", 1, None)]),
    ("same id", jsonl(request("a"), request("b"), request("a")), [("duplicate_custom_id", 3, "custom_id")]),
    ("two models", jsonl(request("a"), request("b", model="qwen3-4b")), [("mismatched_model", 2, "body.model")]),
    ("unknown model", jsonl(request("a", model="gpt-4o")), [("model_not_found", 1, "body.model")]),
    ("other url", jsonl(request("a") | {"url": "/v1/embeddings"}), [("url_mismatch", 1, "url")]),
    (
        "parts missing",
        jsonl({}, {"custom_id": "a"}, request("b") | {"body": {}}),
        [("missing_required_parameter", n, name) for n, name in ((1, "custom_id"), (2, "method"), (3, "body.model"))],
    ),
    ("wrong types", jsonl(request("a") | {"custom_id": 7}), [("invalid_type", 1, "custom_id")]),
    ("compressed", gzip.compress(jsonl(request("a"))), [("invalid_json_line", None, None)]),
    ("too many", jsonl(*(request(f"r-{n}") for n in range(50_001))), [("too_many_tasks", None, None)]),
]


@pytest.mark.parametrize(("content", "expected"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_a_malformed_file_fails_its_batch(client: OpenAI, content: bytes, expected: list[Any]) -> None:
    batch = wait(client, create(client, content).id)
    assert batch.status == "failed"
    assert batch.failed_at
    assert batch.errors
    assert batch.errors.data
    assert [(error.code, error.line, error.param) for error in batch.errors.data] == expected
    assert all(error.message for error in batch.errors.data)
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


def test_a_file_of_bad_requests_only(client: OpenAI) -> None:
    batch = wait(client, create(client, jsonl(request("a", temperature=9))).id)
    assert (batch.status, counts(batch), batch.output_file_id) == ("completed", (1, 0, 1), None)
    assert lines(client, batch.error_file_id).keys() == {"a"}


def test_wrong_requests(client: OpenAI, served: Server) -> None:
    file = client.files.create(file=("input.jsonl", jsonl(request("a"))), purpose="batch")
    asked: dict[str, Any] = {"input_file_id": file.id, "endpoint": "/v1/completions", "completion_window": "24h"}
    wrong: dict[str, Any]
    for wrong, expected in (
        ({"endpoint": "/v1/embeddings"}, (400, "invalid_value", "endpoint")),
        ({"completion_window": "soon"}, (400, "invalid_value", "completion_window")),
        ({"input_file_id": "file-none"}, (404, "not_found", "input_file_id")),
        ({"metadata": {"a": "b" * 513}}, (400, "invalid_value", "metadata.a")),
    ):
        with pytest.raises(openai.APIStatusError) as error:
            client.batches.create(**(asked | wrong))
        assert refused(error.value) == expected
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=b"x", purpose="fine-tune")
    with pytest.raises(openai.NotFoundError) as error:
        client.embeddings.create(model=PAIR, input="x")
    assert refused(error.value) == (404, "unknown_url", None)
    headers = {"Authorization": "Bearer key-of-ann"}
    answer = httpx.post(f"{served.base}/batches", content=b"{", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_a_file_that_is_too_large(client: OpenAI, served: Server) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        client.files.create(file=("big.jsonl", bytes(210 * 2**20)), purpose="batch")
    assert refused(error.value) == (413, "request_too_large", None)
    status = Path(f"/proc/{served.process.pid}/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        assert int(peak.split()[1]) < 200_000, "it was not held in memory"
