"""What the tests of `draftmill serve` share: a server process, a worker process, and requests for OpenAI's client."""

from __future__ import annotations

import signal
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import redis as redis_py
from openai import APIStatusError, OpenAI
from openai.types import Batch

from draftmill.producer.queue.fleet import served
from tests.farm.zygote import forked_worker
from tests.producer.conftest import Shell
from tests.worker.run_worker import PAIR, Settings

ENDED = ("completed", "failed", "expired", "cancelled")
MESSAGES: Any = [{"role": "user", "content": "say it"}]


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

    def start(self, verify: str | None = None) -> None:
        """Starts the next one; `verify` has the CA by which its certificate is known, if it has one."""
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
            with httpx.Client(verify=ssl.create_default_context(cafile=verify) if verify else True) as client:
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
def worker(url: str, spool: Path, **settings: Any) -> Iterator[None]:
    """A worker process with an engine of set speed, which Redis knows: models without a live worker are refused."""
    with forked_worker(Settings(url, str(spool), **settings)), redis_py.Redis.from_url(url) as redis:
        wait_until(lambda: settings.get("pair", PAIR) in served(redis), 20)
        yield


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


def refused(error: APIStatusError) -> tuple[int, str | None, str | None]:
    """Status, code and parameter of an error that has OpenAI's form."""
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    return error.status_code, error.code, error.param


def wait_until(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
