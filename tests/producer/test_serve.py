"""`draftmill serve` as OpenAI's own client sees it: a real server process, a real Redis, a real worker process."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest
import redis as redis_py
from openai import OpenAI
from openai.types import Batch

from draftmill.producer import batches
from draftmill.producer.errors import UserError
from draftmill.producer.serve import keys
from tests.producer.conftest import ROOT, Shell
from tests.redis_server import RedisServer
from tests.worker.run_worker import PAIR, Settings

ENDED = ("completed", "failed", "expired", "cancelled")
KEYS = "# two users\nann:key-of-ann\nbob:key-of-bob\n"


def request(id: str, tokens: int = 3, prompt: str = "say it", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    body = {"model": PAIR, "messages": messages, "max_tokens": tokens} | body
    return {"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(orjson.dumps(line) + b"\n" for line in lines)


class Server:
    """One `draftmill serve` process after the other, on the same files."""

    def __init__(self, shell: Shell, url: str, *options: str) -> None:
        self.shell, self.url, self.options = shell, url, options
        self.log = shell.folder / "server.log"

    def start(self) -> None:
        size = self.log.stat().st_size if self.log.exists() else 0
        command = ["serve", "--port", "0", "--files", "files", "--redis-url", self.url, *self.options]
        self.process = self.shell.start(*command, stderr=self.log.open("ab"))
        deadline = time.monotonic() + 20
        while "serving http" not in (said := self.log.read_text()[size:]):
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.02)
        self.base = said.split("serving ")[-1].split(",")[0]
        while True:
            with httpx.Client() as client:
                try:
                    client.get(f"{self.base}/models")
                    return
                except httpx.TransportError:
                    assert time.monotonic() < deadline, self.log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def client(self, key: str = "key-of-ann", **options: Any) -> OpenAI:
        return OpenAI(api_key=key, base_url=self.base, max_retries=0, **options)


@contextmanager
def worker(server: RedisServer, **settings: Any) -> Iterator[None]:
    command = Settings(server.url, str(server.folder / "spool"), **settings).command()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    yield
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def served(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two users, and a worker that it may use."""
    folder = tmp_path_factory.mktemp("served")
    shell = Shell(folder, folder / "home")
    server = Server(shell, redis_server.url, "--api-key-file", shell.write("keys", KEYS))
    server.start()
    with worker(redis_server):
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


def create(client: OpenAI, content: bytes, window: Any = "24h", endpoint: Any = "/v1/chat/completions") -> Batch:
    file = client.files.create(file=("input.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window=window)


def wait(client: OpenAI, id: str, until: Callable[[Batch], bool] | None = None, seconds: float = 30) -> Batch:
    """Polls a batch until it has ended, or is as asked."""
    deadline = time.monotonic() + seconds
    while not (until or (lambda batch: batch.status in ENDED))(batch := client.batches.retrieve(id)):
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def lines(client: OpenAI, id: str | None) -> dict[str, dict[str, Any]]:
    """The lines of a file by custom_id; none is there twice."""
    found = [orjson.loads(line) for line in client.files.content(id).text.splitlines()] if id else []
    by_id = {line["custom_id"]: line for line in found}
    assert len(by_id) == len(found)
    return by_id


def counts(batch: Batch) -> tuple[int, int, int]:
    assert batch.request_counts
    return batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed


def refused(error: openai.APIStatusError) -> tuple[int, str | None, str | None]:
    """Status, code and parameter of an error that has OpenAI's form."""
    assert error.body
    assert set(error.body) == {"message", "type", "param", "code"}  # pyright: ignore[reportArgumentType]
    return error.status_code, error.code, error.param


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
    from draftmill.engine.pairs import PAIRS

    names = [model.id for model in client.models.list()]
    assert names[0] == PAIR, "a live worker serves it"
    assert set(names) == {PAIR, *PAIRS}
    assert client.models.retrieve("Qwen3-4B").id == "qwen3-4b"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("owner/none")
    assert refused(error.value) == (404, "model_not_found", "model")


MESSAGES: Any = [{"role": "user", "content": "say it"}]


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
        ({"messages": []}, (400, "invalid_request", None)),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, (400, "invalid_request", None)),
    ]
    for wrong, expected in asked:
        with pytest.raises(openai.APIStatusError) as error:
            client.chat.completions.create(**{"model": PAIR, "messages": MESSAGES} | wrong)
        assert refused(error.value) == expected
    wait_until(lambda: not batches.list_batches(redis))


def wait_until(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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


def test_a_server_killed_again_and_again_goes_on(
    redis_server: RedisServer, shell: Shell, redis: redis_py.Redis
) -> None:
    server = Server(shell, redis_server.url, "--pair", PAIR)
    server.start()
    client = server.client()
    count = 3000
    content = jsonl(*(request(f"r-{n}", tokens=2) for n in range(count)), request("bad", n=2))
    made = create(client, content).id
    cancelled = create(client, jsonl(*(request(f"r-{n}", tokens=100_000) for n in range(50)))).id
    server.kill()  # while it validates or queues
    with worker(redis_server, rows=32, round_seconds=0.02):
        for n in range(4):
            server.start()
            client = server.client()
            if n == 1:
                client.batches.cancel(cancelled)
            time.sleep(0.1 * n)
            server.kill()
        server.start()
        client = server.client()
        batch = wait(client, made, seconds=60)
        assert batch.status == "completed"
        assert counts(batch) == (count + 1, count, 1)
        assert lines(client, batch.output_file_id).keys() == {f"r-{n}" for n in range(count)}
        assert lines(client, batch.error_file_id).keys() == {"bad"}
        batch = wait(client, cancelled)
        assert batch.status == "cancelled"
        assert lines(client, batch.error_file_id).keys() == {f"r-{n}" for n in range(50)}
    assert not list((shell.folder / "files" / "work").iterdir())
    assert batches.list_batches(redis) == []
    assert server.stop() == 0


def test_a_redis_that_goes_away_for_a_while(shell: Shell) -> None:
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as folder:
        redis_server = RedisServer(Path(folder))
        redis_server.start()
        server = Server(shell, redis_server.url)
        server.start()
        with worker(redis_server):
            client = server.client()
            made = create(client, jsonl(*(request(f"r-{n}", tokens=20) for n in range(100)))).id
            wait(client, made, lambda batch: counts(batch)[1] > 0)
            redis_server.kill()
            assert client.batches.retrieve(made).status == "in_progress"
            time.sleep(1)
            redis_server.start()
            batch = wait(client, made)
            assert (batch.status, counts(batch)) == ("completed", (100, 100, 0))
        assert server.stop() == 0
        redis_server.kill()


def test_calls_without_a_worker_time_out(redis_server: RedisServer, shell: Shell, redis: redis_py.Redis) -> None:
    server = Server(shell, redis_server.url, "--timeout", "1")
    server.start()
    with pytest.raises(openai.InternalServerError, match="none serves smollm2-135m") as error:
        server.client().chat.completions.create(model="smollm2-135m", messages=MESSAGES)
    assert refused(error.value) == (504, "timeout", None)
    wait_until(lambda: not batches.list_batches(redis))
    answer = httpx.get(f"{server.base}/models", headers={"Host": "evil.example"})
    assert (answer.status_code, "localhost only" in answer.text) == (403, True)
    server.stop()


def test_wrong_commands(redis_server: RedisServer, shell: Shell) -> None:
    url = ("--redis-url", redis_server.url)
    server = Server(shell, redis_server.url)
    server.start()
    for arguments, message in (
        (("--host", "0.0.0.0"), "must show an API key"),
        (("--api-key-file", shell.write("short", "abc\n")), "8 at least"),
        (("--files", "files"), "another server uses"),
        (("--port", server.base.split(":")[-1].split("/")[0]), "cannot listen"),
    ):
        result = shell("serve", *arguments, *url)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
        assert message in result.stderr
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("# none\n", "has no key"), ("a:12345678\nb:12345678\n", "is there twice")],
)
def test_wrong_files_of_keys(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "keys"
    if content:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        keys.read(path)


def test_a_key_without_a_name_has_a_user_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTMILL_API_KEY", "sk-12345678")
    assert keys.read(None).user("sk-12345678") == "key-" + hashlib.sha256(b"sk-12345678").hexdigest()[:8]
    monkeypatch.delenv("DRAFTMILL_API_KEY")
    assert not keys.read(None)
    assert [keys.is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::")] == [True] * 3 + [
        False
    ] * 2
