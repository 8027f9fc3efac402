"""`draftmill serve` when something goes wrong: kills, a Redis that goes away, wrong commands, users with few rights."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest
import redis as redis_py

from draftmill.producer.queue import acl, batches
from draftmill.producer.queue.errors import UserError
from draftmill.producer.web import keys
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

Serve = Callable[..., Server]


@pytest.fixture
def serve(shell: Shell) -> Iterator[Serve]:
    """Starts a server on the Redis at a URL, with further options; it ends with the test."""
    with ExitStack() as stack:

        def start(url: str, *options: str) -> Server:
            server = Server(shell, url, *options)
            stack.callback(server.kill)
            server.start()
            return server

        yield start


def test_a_server_killed_again_and_again_goes_on(
    redis_server: RedisServer, serve: Serve, shell: Shell, redis: redis_py.Redis
) -> None:
    server = serve(redis_server.url, "--pair", PAIR)
    client = server.client()
    count = 3000
    content = jsonl(*(request(f"r-{n}", tokens=2) for n in range(count)), request("bad", temperature=9))
    made = create(client, content).id
    cancelled = create(client, jsonl(*(request(f"r-{n}", tokens=100_000) for n in range(50)))).id
    server.kill()  # while it validates or queues
    with worker(redis_server.url, redis_server.folder / "spool", rows=32, round_seconds=0.02):
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


def test_a_redis_that_goes_away_for_a_while(serve: Serve) -> None:
    with fresh_server() as redis_server:
        server = serve(redis_server.url)
        with worker(redis_server.url, redis_server.folder / "spool"):
            client = server.client()
            made = create(client, jsonl(*(request(f"r-{n}", tokens=20) for n in range(100)))).id
            wait(client, made, lambda batch: counts(batch)[1] > 0)
            redis_server.kill()
            assert client.batches.retrieve(made).status == "in_progress"
            time.sleep(1)
            redis_server.start()
            wait(client, made, lambda batch: counts(batch)[1] > 20)
            with redis_server.connect() as redis:  # it loses all that it has
                redis.flushall()
            batch = wait(client, made)
            assert (batch.status, counts(batch)) == ("completed", (100, 100, 0))
            assert len(lines(client, batch.output_file_id)) == 100
        assert server.stop() == 0


def test_more_batches_than_threads(
    redis_server: RedisServer, serve: Serve, redis: redis_py.Redis, shell: Shell
) -> None:
    """While they wait they cost next to nothing; each is heard when it is cancelled, or gets results."""
    server = serve(redis_server.url, "--pair", PAIR)
    client = server.client()
    made = [create(client, jsonl(request("r-0"), request("r-1"))).id for _ in range(30)]
    for id in made:
        wait(client, id, lambda batch: batch.status == "in_progress")
    wait_until(lambda: all(state.queued == 2 for state in batches.list_batches(redis)))
    before = redis.info("stats")["total_commands_processed"]
    time.sleep(2)
    assert redis.info("stats")["total_commands_processed"] - before < 200  # with a thread each: 480
    client.batches.cancel(made[0])
    batches.cancel(redis, made[1])
    assert [wait(client, id).status for id in made[:2]] == ["cancelled"] * 2
    with worker(redis_server.url, redis_server.folder / "spool"):
        assert {wait(client, id).status for id in made[2:]} == {"completed"}
    assert server.stop() == 0
    assert server.log.read_text().count("completed") == 28


def test_calls_without_a_worker_time_out(redis_server: RedisServer, serve: Serve, redis: redis_py.Redis) -> None:
    server = serve(redis_server.url, "--timeout", "1")
    with pytest.raises(openai.InternalServerError, match="none serves smollm2-135m") as error:
        server.client().chat.completions.create(model="smollm2-135m", messages=MESSAGES)
    assert refused(error.value) == (504, "timeout", None)
    wait_until(lambda: not batches.list_batches(redis))
    assert server.stop() == 0


def test_no_keys_and_no_disk(redis_server: RedisServer, serve: Serve, shell: Shell) -> None:
    server = serve(redis_server.url)
    answer = httpx.get(f"{server.base}/models", headers={"Host": "evil.example"})
    assert (answer.status_code, "localhost only" in answer.text) == (403, True)
    files = shell.folder / "files" / "files"
    files.rename(files.with_name("elsewhere"))
    with pytest.raises(openai.InternalServerError) as error:
        server.client().files.create(file=("a.jsonl", jsonl(request("a"))), purpose="batch")
    assert refused(error.value) == (507, "not_stored", None)
    assert str(shell.folder) not in error.value.message
    assert server.log.read_text().splitlines()[-1].startswith("a request failed: cannot write")
    files.with_name("elsewhere").rename(files)
    assert server.client().files.create(file=("a.jsonl", jsonl(request("a"))), purpose="batch").id
    assert server.stop() == 0


def test_a_call_that_waits_when_the_server_stops(
    redis_server: RedisServer, serve: Serve, redis: redis_py.Redis
) -> None:
    server = serve(redis_server.url)
    with ThreadPoolExecutor() as pool:
        call = pool.submit(server.client().chat.completions.create, model="smollm2-135m", messages=MESSAGES)
        wait_until(lambda: bool(batches.list_batches(redis)))
        assert server.stop() == 0
        with pytest.raises(openai.InternalServerError) as error:
            call.result()
    assert refused(error.value) == (503, "stopped", None)
    assert not batches.list_batches(redis)
    assert "Traceback" not in server.log.read_text()

    server.start()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(server.client().chat.completions.create, model="smollm2-135m", messages=MESSAGES)
        wait_until(lambda: bool(batches.list_batches(redis)))
        server.kill()
        with pytest.raises(openai.APIConnectionError):
            call.result()
    server.start()
    wait_until(lambda: not batches.list_batches(redis))
    assert server.stop() == 0


def test_wrong_commands(redis_server: RedisServer, serve: Serve, shell: Shell) -> None:
    url = ("--redis-url", redis_server.url)
    server = serve(redis_server.url)
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


def test_the_redis_user_of_the_server_may_do_its_job(serve: Serve, tmp_path: Path) -> None:
    passwords = {name: f"pass-{name}" for name in ("admin", *acl.ROLES)}
    users = tmp_path / "users.acl"
    users.write_text("\n".join(acl.users(passwords, (7, 2))) + "\n")
    with fresh_server("--aclfile", str(users)) as redis_server:
        url = redis_server.url.replace("unix://", "unix://{0}:pass-{0}@")
        server = serve(url.format("server"))
        with worker(url.format("worker"), redis_server.folder / "spool"):
            client = server.client()
            chat = client.chat.completions.create(model=PAIR, messages=MESSAGES, max_tokens=2)
            assert chat.choices[0].message.content == "word0 word1"
            made = create(client, jsonl(*(request(f"r-{n}", tokens=3 if n < 8 else 100_000) for n in range(40))))
            wait(client, made.id, lambda batch: counts(batch)[1] == 8)
            client.batches.cancel(made.id)
            batch = wait(client, made.id)
            assert (batch.status, len(lines(client, batch.error_file_id))) == ("cancelled", 32)
            with pytest.raises(openai.APITimeoutError):
                server.client(timeout=0.3).chat.completions.create(model=PAIR, messages=MESSAGES, max_tokens=100_000)
            with redis_py.Redis.from_url(url.format("admin")) as admin:
                wait_until(lambda: not admin.keys("draftmill:batch:*"))
        assert server.stop() == 0
        assert "denies" not in server.log.read_text()
