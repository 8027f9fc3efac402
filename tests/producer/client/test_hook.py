"""Whom commands and servers tell that a batch has ended: signed, retried, and at least once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from draftmill.producer.client import hook
from draftmill.producer.client.hook import SECRET, Event, Hook, Untold
from draftmill.producer.queue.errors import UserError
from tests.producer.conftest import Shell
from tests.producer.web.serving import PAIR, Server, create, jsonl, request, wait, wait_until
from tests.redis_server import RedisServer

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
EVENT = Event("batch_1", "completed", {"done": 3})


class Receiver:
    """An HTTP server that keeps what it is sent, and gives these answers in turn, the last one for ever."""

    def __init__(self, *answers: int) -> None:
        self.answers, self.got = list(answers), list[tuple[dict[str, str], bytes]]()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.got.append((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(receiver.answers[0] if len(receiver.answers) == 1 else receiver.answers.pop(0))
                self.send_header("location", "/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/done?token=hidden"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def events(self) -> list[Any]:
        """What came, as OpenAI's client reads it once it has checked the signature."""
        client = OpenAI(api_key="none", webhook_secret=KEY)
        return [client.webhooks.unwrap(body.decode(), headers) for headers, body in self.got]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    receivers: list[Receiver] = []

    def start(*answers: int) -> Receiver:
        receivers.append(Receiver(*answers))
        return receivers[-1]

    yield start
    for receiver in receivers:
        receiver.close()


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, KEY)


@pytest.mark.usefixtures("secret")
def test_openais_client_reads_what_is_sent(receive: Callable[..., Receiver]) -> None:
    receiver = receive(204)
    Hook.of(receiver.url, None).tell(EVENT)
    (event,) = receiver.events()
    assert (event.type, event.data.id, event.id) == ("batch.completed", "batch_1", EVENT.id)
    assert event.model_extra == {"draftmill": {"done": 3}}
    headers, body = receiver.got[0]
    with pytest.raises(InvalidWebhookSignatureError):
        OpenAI(api_key="none", webhook_secret="another").webhooks.unwrap(body.decode(), headers)


@pytest.mark.usefixtures("secret")
def test_what_passes_is_tried_again_with_growing_pauses(receive: Callable[..., Receiver]) -> None:
    receiver, pauses = receive(503, 429, 200), list[float]()
    Hook.of(receiver.url, None).tell_patiently(EVENT, pauses.append)
    assert pauses == [1, 2]
    assert len({event.id for event in receiver.events()}) == 1
    nobody = receive(200)
    nobody.close()
    pauses.clear()
    with pytest.raises(UserError, match=r"cannot notify http://127.0.0.1:\d+: .*run the same command again"):
        Hook.of(nobody.url, None).tell_patiently(EVENT, pauses.append)
    assert pauses == [1, 2, 4, 8, 16, 32]


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("answer", [302, 404])
def test_what_does_not_pass_is_said_at_once(receive: Callable[..., Receiver], answer: int) -> None:
    receiver = receive(answer)
    with pytest.raises(UserError, match=f"it answered {answer}; mend it"):
        Hook.of(receiver.url, None).tell_patiently(EVENT, lambda _: pytest.fail("it waited"))
    assert len(receiver.got) == 1


def test_a_command_gets_the_same_on_its_standard_input(tmp_path: Path) -> None:
    Hook.of(f"tee '{tmp_path / 'told'}'", None).tell(EVENT)
    told = orjson.loads((tmp_path / "told").read_bytes())
    assert (told["type"], told["data"], told["draftmill"]) == ("batch.completed", {"id": "batch_1"}, {"done": 3})
    with pytest.raises(Untold, match="it ended with exit code 1"):
        Hook.of("false", None).tell(EVENT)


def test_a_command_that_hangs_ends_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "COMMAND_SECONDS", 0.3)
    left = tmp_path / "left"
    slow = Hook.of(f"sh -c 'sleep 1; touch {left}'", None)
    with pytest.raises(UserError, match=r"it took longer than 0.3 s; mend it"):
        slow.tell_patiently(EVENT, lambda _: pytest.fail("it waited"))
    time.sleep(1.2)
    assert not left.exists()


@pytest.mark.parametrize(
    ("target", "content", "reason"),
    [
        ("https://example.com", None, f"is signed: name a file with --notify-secret, or set {SECRET}"),
        ("https://example.com", "", "is empty"),
        ("https://example.com", "whsec_?", "no base64 follows"),
        ("https://", "secret", "without a host"),
        ("https://ann:word@example.com", "secret", "with a user name for example.com; leave that out"),
        ("tell me", "secret", "a command is not signed"),
        ("tell 'me", None, "is no command: no closing quotation"),
        (" ", None, "--notify is empty"),
        ("no-such-command $(id)", None, "there is no command 'no-such-command'"),
        ("ftp://example.com/done", "secret", "is a URL of ftp://"),
        ("HTTPS://", "secret", "without a host"),
        ("http://example.com:99999/", "secret", "host or port is wrong"),
        ("http://a..b/", "secret", "host or port is wrong"),
        ("http://[::1/done", "secret", "host or port is wrong"),
        ("http://example.com/a b", "secret", "of example.com with spaces"),
        ("http://example.com/\u00e4", "secret", "of example.com with spaces"),
    ],
)
def test_wrong_hooks(tmp_path: Path, target: str, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "secret").write_text(content)
    with pytest.raises(UserError, match=reason):
        Hook.of(target, None if content is None else tmp_path / "secret")


def test_collect_tells_once_that_a_batch_is_complete(shell: Shell, worker: Callable[[], None]) -> None:
    shell.write("in.jsonl", b'{"id": "a", "prompt": "say it", "max_tokens": 2}\n')
    batch = shell("submit", "in.jsonl", "--pair", PAIR).stdout.strip()
    hook = ("--notify", "sh -c 'cat >> told; echo >> told; test -e works'")
    collect = ("collect", batch, "-o", "out.jsonl", *hook)
    shell("collect", batch, "-o", "out.jsonl", *hook)
    assert not (shell.folder / "told").exists()
    worker()
    shell("collect", batch, "-o", "out.jsonl", "--follow")
    (shell.folder / "works").touch()
    for _ in range(2):
        told = shell(*collect)
        assert told.returncode == 0, told.stderr
    (line,) = shell.lines("told")
    event = orjson.loads(line)
    assert (event["type"], event["data"]["id"]) == ("batch.completed", batch)
    assert event["draftmill"] == {
        "source": "in.jsonl",
        "out": "out.jsonl",
        "errors": None,
        "done": 1,
        "failed": 0,
        "bad": 0,
    }


def test_a_server_tells_how_batches_ended(
    shell: Shell, redis_server: RedisServer, worker: Callable[[], None], receive: Callable[..., Receiver]
) -> None:
    receiver = receive(500, 500, 500, 200)
    shell.write("secret", KEY)
    server = Server(shell, redis_server.url, "--notify", receiver.url, "--notify-secret", "secret", "--pair", PAIR)
    server.start()
    try:
        worker()
        client = server.client()
        done = wait(client, create(client, jsonl(request("a"))).id)
        wait_until(lambda: bool(receiver.got))
        server.kill()  # before it could tell
        server.start()
        failed = wait(server.client(), create(server.client(), b"no json\n").id)
        wait_until(lambda: receiver.answers == [200] and len({event.id for event in receiver.events()}) == 2)
        wait_until(lambda: {event.type for event in receiver.events()} == {"batch.completed", "batch.failed"})
    finally:
        server.kill()
    told = {event.data.id: event for event in receiver.events()}
    assert told.keys() == {done.id, failed.id}
    extra = told[done.id].model_extra["draftmill"]
    assert extra["output_file_id"] == done.output_file_id
    assert extra["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    log, place = server.log.read_text(), receiver.url.removesuffix("/done?token=hidden")
    assert f"cannot notify {place}: it answered 500; trying again" in log
    assert "hidden" not in log
