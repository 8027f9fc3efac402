"""What operators of `draftmill serve` set and see: aliases, notes, windows, expiry, health and metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import orjson
import pytest
from openai import OpenAI
from openai.types import Batch, FileObject
from prometheus_client.parser import text_string_to_metric_families

from draftmill.producer.queue.orders import steer
from draftmill.producer.web.serve.files import FileRecord
from tests.producer.conftest import Shell
from tests.producer.web.serving import (
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
from tests.redis_server import RedisServer, fresh_server

KEY = {"Authorization": "Bearer key-of-ann"}


@pytest.fixture(scope="module")
def server(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    shell = Shell(folder, folder / "home")
    names = ("--alias", f"gpt-4o-mini={PAIR}", "--alias", f"gpt-4o={PAIR}")
    options = (*names, "--alias", "later=owner/model", "--window", "48h")
    server = Server(shell, redis_server.url, "--api-key-file", shell.write("keys", "ann:key-of-ann\n"), *options)
    server.start()
    with worker(redis_server.url, redis_server.folder / "spool"):
        yield server
    assert server.stop() == 0


@pytest.fixture
def client(server: Server) -> OpenAI:
    return server.client()


def metrics(server: Server) -> dict[str, float]:
    """The values of all series of the server by how they are written."""
    text = httpx.get(f"{server.base.removesuffix('/v1')}/metrics", headers=KEY).text
    found: dict[str, float] = {}
    for sample in (sample for family in text_string_to_metric_families(text) for sample in family.samples):
        labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
        found[f"{sample.name.removeprefix('draftmill_serve_')}{{{labels}}}"] = sample.value
    return found


def test_an_alias_is_a_model(client: OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    extra = models["gpt-4o-mini"].model_extra
    assert extra
    assert (extra["root"], extra["live_workers"]) == (PAIR, 1)
    assert models[PAIR].model_extra == extra
    assert client.models.retrieve("later").id == "later"
    chat = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_tokens=2)
    assert (chat.model, chat.choices[0].message.content) == ("gpt-4o-mini", "word0 word1")
    assert client.chat.completions.create(model=PAIR, messages=MESSAGES, max_tokens=2).model == PAIR


def test_a_batch_by_an_alias(client: OpenAI) -> None:
    asked = [request(f"r-{n}", model="gpt-4o-mini") for n in range(10)]
    content = jsonl(*asked, request("bad", temperature=9, model="gpt-4o-mini"))
    batch = wait(client, create(client, content).id)
    assert (batch.status, counts(batch), batch.model) == ("completed", (11, 10, 1), "gpt-4o-mini")
    out = lines(client, batch.output_file_id)
    assert {line["response"]["body"]["model"] for line in out.values()} == {"gpt-4o-mini"}
    assert batch.model_extra == {"draftmill": {"notes": [], "paused": False}}


def test_a_batch_may_call_one_pair_by_several_names(client: OpenAI) -> None:
    called = {"a": "gpt-4o-mini", "b": PAIR, "c": "gpt-4o", "d": PAIR.upper(), "e": "gpt-4o-mini"}
    content = jsonl(*(request(id, model=model) for id, model in called.items()))
    batch = wait(client, create(client, content).id)
    assert (batch.status, counts(batch), batch.model) == ("completed", (5, 5, 0), PAIR)
    out = lines(client, batch.output_file_id)
    assert {id: line["response"]["body"]["model"] for id, line in out.items()} == called
    batch = wait(client, create(client, content + jsonl(request("f", model="later"))).id)
    assert batch.errors
    assert [(error.code, error.line) for error in batch.errors.data or ()] == [("mismatched_model", 6)]


def test_what_a_request_asks_in_vain_is_told(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=PAIR, messages=MESSAGES, max_tokens=2, extra_body={"mood": "good", "wörter\n": 1}
    )
    notes = orjson.loads(raw.headers["x-draftmill-notes"])
    assert [word in note for word, note in zip(("mood", "wörter"), notes, strict=True)] == [True, True]
    raw = client.chat.completions.with_raw_response.create(
        model=PAIR, messages=MESSAGES, max_tokens=2, extra_body={f"field-{n}": 1 for n in range(3000)}
    )
    assert len(raw.headers["x-draftmill-notes"]) < 8000
    assert "2,980 more" in raw.headers["x-draftmill-notes"]
    raw = client.chat.completions.with_raw_response.create(  # a worker sees this one
        model=PAIR, messages=MESSAGES, max_tokens=2, extra_body={"thinking_budget": 5}
    )
    told = orjson.loads(raw.text)["draftmill"]["notes"]
    assert "thinking_budget" in told[0]
    assert orjson.loads(raw.headers["x-draftmill-notes"]) == told
    plain = client.chat.completions.with_raw_response.create(model=PAIR, messages=MESSAGES, max_tokens=2)
    assert "x-draftmill-notes" not in plain.headers

    batch = wait(client, create(client, jsonl(request("a", mood="good"), request("b", mood="bad"))).id)
    assert batch.model_extra
    assert batch.model_extra["draftmill"]["notes"] == ['field "mood" is unknown and ignored (2 lines)']
    Batch.model_validate(batch.model_dump(), strict=True)

    requests = [request("a", mood="good"), *(request(f"r-{n}", thinking_budget=5) for n in range(3))]
    batch = wait(client, create(client, jsonl(*requests)).id)
    assert batch.model_extra
    assert batch.model_extra["draftmill"]["notes"] == [
        'field "mood" is unknown and ignored (1 line)',
        f"{told[0]} (3 lines)",
    ]


def test_a_paused_batch_says_so(client: OpenAI, redis_server: RedisServer) -> None:
    id = create(client, jsonl(*(request(f"r-{n}", tokens=100) for n in range(100)))).id

    def paused() -> bool:
        extra = client.batches.retrieve(id).model_extra
        assert extra
        return extra["draftmill"]["paused"]

    with redis_server.connect() as redis:
        wait_until(lambda: steer.pause(redis, id))
        wait_until(paused)
        assert client.batches.retrieve(id).status == "in_progress"
        assert steer.resume(redis, id)
        assert counts(wait(client, id)) == (100, 100, 0)
        assert not paused()


def test_wrong_aliases(server: Server, redis_server: RedisServer) -> None:
    for aliases, message in (
        (["gpt"], "'gpt' is no NAME=PAIR"),
        (["=x"], "is no NAME=PAIR"),
        (["Qwen3-4B=smollm2-135m"], "is the name of a pair"),
        (["gpt=qwen3-4b", "gpt=qwen3-8b"], "stands for two pairs"),
    ):
        options = [part for alias in aliases for part in ("--alias", alias)]
        done = server.shell("serve", *options, "--redis-url", redis_server.url)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr


def test_the_servers_window_outlives_that_of_clients(client: OpenAI) -> None:
    for window, hours in (("24h", 48), ("5s", 48), ("3d", 72)):
        batch = create(client, jsonl(request("a")), window=window)
        assert batch.expires_at
        assert (batch.completion_window, batch.expires_at - batch.created_at) == (window, hours * 3600)
        assert wait(client, batch.id).status == "completed"


def test_files_expire(client: OpenAI, server: Server) -> None:
    content = jsonl(request("a"))
    file = client.files.create(
        file=("a.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    batch = wait(client, batch.id)
    assert batch.output_file_id
    output = client.files.retrieve(batch.output_file_id)
    assert output.expires_at == output.created_at + 7200
    FileObject.model_validate(output.model_dump(), strict=True)
    assert client.files.create(file=("a.jsonl", content), purpose="batch").expires_at is None

    wrong: tuple[tuple[Any, str], ...] = (
        ({"anchor": "created_at", "seconds": 3599}, "seconds"),
        ({"anchor": "created_at", "seconds": 2592001}, "seconds"),
        ({"anchor": "last_active_at", "seconds": 3600}, "anchor"),
        ({"anchor": "created_at"}, "seconds"),
        ({"seconds": 3600}, "anchor"),
    )
    after: Any
    for after, param in wrong:
        with pytest.raises(openai.BadRequestError) as error:
            client.files.create(file=("a.jsonl", content), purpose="batch", expires_after=after)
        assert refused(error.value) == (400, "invalid_value", f"expires_after.{param}")
        with pytest.raises(openai.BadRequestError) as error:
            client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                output_expires_after=after,
            )
        assert refused(error.value) == (400, "invalid_value", f"output_expires_after.{param}")


def test_an_expired_file_is_gone(redis_server: RedisServer, shell: Shell) -> None:
    """Its hour passes while no server runs."""
    server = Server(shell, redis_server.url)
    begin = time.time()
    server.start()
    starting = int(2 * (time.time() - begin))
    folder = shell.folder / "files" / "files"
    kept = server.client().files.create(file=("a.jsonl", b"{}"), purpose="batch")
    assert server.stop() == 0
    record = FileRecord(**orjson.loads((folder / f"{kept.id}.json").read_bytes()))
    for id, expires_at in (("file-old", int(time.time()) - 1), ("file-soon", int(time.time()) + starting + 4)):
        (folder / f"{id}.json").write_bytes(orjson.dumps(record.__dict__ | {"id": id, "expires_at": expires_at}))
        (folder / id).write_bytes(b"{}")
    server.start()
    client = server.client()
    try:
        assert {file.id for file in client.files.list()} == {kept.id, "file-soon"}
        wait_until(lambda: not list(folder.glob("file-old*")))
        assert client.files.content("file-soon").text == "{}"
        time.sleep(max(0, expires_at - time.time()))
        assert {file.id for file in client.files.list()} == {kept.id}
        for call in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError) as error:
                call("file-soon")
            assert refused(error.value) == (404, "not_found", "id")
        with pytest.raises(openai.NotFoundError) as error:
            client.batches.create(input_file_id="file-soon", endpoint="/v1/chat/completions", completion_window="24h")
        assert refused(error.value) == (404, "not_found", "input_file_id")
    finally:
        server.kill()


def test_what_is_older_than_the_retention_is_gone(redis_server: RedisServer, shell: Shell) -> None:
    server = Server(shell, redis_server.url)
    server.start()
    folder, day = shell.folder / "files", 24 * 3600
    content = jsonl(request("a"))
    with worker(redis_server.url, redis_server.folder / "spool"):
        old, new = (create(server.client(), content).id for _ in range(2))
        old, new = (wait(server.client(), id) for id in (old, new))
    waiting = create(server.client(), content)
    assert server.stop() == 0
    for record, ages in ((old.id, "completed_at"), (old.input_file_id, "created"), (waiting.id, "created")):
        (path,) = folder.glob(f"*/{record}.json")
        path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | {ages: int(time.time()) - 2 * day}))
    server.options = ("--retention", "1d")
    server.start()
    client = server.client()
    try:
        wait_until(lambda: {batch.id for batch in client.batches.list()} == {new.id, waiting.id})
        wait_until(lambda: not list(folder.glob(f"*/{old.id}*")) and not list(folder.glob(f"*/{old.input_file_id}*")))
        assert old.output_file_id
        assert client.files.retrieve(old.output_file_id).expires_at is None  # it came before there was a retention
        file = client.files.create(file=("a.jsonl", content), purpose="batch")
        assert file.expires_at == file.created_at + day
        soon: Any = {"anchor": "created_at", "seconds": 3600}
        file = client.files.create(file=("a.jsonl", content), purpose="batch", expires_after=soon)
        assert file.expires_at == file.created_at + 3600
    finally:
        server.kill()


def test_health_needs_no_key(shell: Shell) -> None:
    with fresh_server() as redis:
        server = Server(shell, redis.url, "--api-key-file", shell.write("keys", "key-of-ann\n"))
        server.start()
        health = f"{server.base.removesuffix('/v1')}/healthz"
        try:
            assert (httpx.get(health).status_code, httpx.get(health).json()) == (200, {"status": "ok"})
            redis.kill()
            away = httpx.get(health, timeout=10)
            assert (away.status_code, away.json()["error"]["code"]) == (503, "no_queue")
            redis.start()
            wait_until(lambda: httpx.get(health, timeout=10).status_code == 200)
            wrong = httpx.post(health)
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_supported")
        finally:
            server.kill()


def test_metrics(client: OpenAI, server: Server) -> None:
    assert httpx.get(f"{server.base.removesuffix('/v1')}/metrics").status_code == 401
    before = metrics(server)
    chat, batch, other = (
        f"requests_total{{method={method},route={route},status={status}}}"
        for method, route, status in (
            ("POST", "/v1/chat/completions", 200),
            ("GET", "/v1/batches/{id}", 404),
            ("other", "other", 404),
        )
    )
    client.chat.completions.create(model=PAIR, messages=MESSAGES, max_tokens=2)
    for n in range(3):
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve(f"batch_{n}")
        httpx.request(f"BREW{n}", f"{server.base}/tea/{n}", headers=KEY)
    done = wait(client, create(client, jsonl(request("a"))).id)
    assert done.status == "completed"
    after = metrics(server)
    assert after[chat] == before.get(chat, 0) + 1
    assert after[batch] == before.get(batch, 0) + 3
    assert after[other] == before.get(other, 0) + 3
    assert after["batches{status=completed}"] == before["batches{status=completed}"] + 1
    assert after["request_seconds_count{route=/v1/chat/completions}"] >= 1
    assert after["waiting_calls{}"] == 0
    assert not any("batch_" in name or "tea" in name or "ann" in name for name in after), "no names of users"


def test_calls_that_wait_are_counted(server: Server) -> None:
    with ThreadPoolExecutor() as pool:
        call = pool.submit(server.client(timeout=2).chat.completions.create, model="later", messages=MESSAGES)
        wait_until(lambda: metrics(server)["waiting_calls{}"] == 1)
        with pytest.raises(openai.APITimeoutError):
            call.result()
    wait_until(lambda: metrics(server)["waiting_calls{}"] == 0)


def test_a_record_of_an_earlier_version_goes_on(redis_server: RedisServer, shell: Shell) -> None:
    """It names no model: its requests called the pair by its own name."""
    server = Server(shell, redis_server.url, "--pair", PAIR)
    server.start()
    made = create(server.client(), jsonl(request("a", tokens=40)), window="1h")
    wait(server.client(), made.id, lambda batch: batch.status == "in_progress")
    server.kill()
    path = shell.folder / "files" / "batches" / f"{made.id}.json"
    record = orjson.loads(path.read_bytes())
    for name in ("model", "notes", "output_lasts"):
        del record[name]
    path.write_bytes(orjson.dumps(record))
    server.start()
    try:
        with worker(redis_server.url, redis_server.folder / "spool"):
            batch = wait(server.client(), made.id)
        assert (batch.status, batch.model) == ("completed", PAIR)
        assert lines(server.client(), batch.output_file_id)["a"]["response"]["body"]["model"] == PAIR
    finally:
        server.kill()
