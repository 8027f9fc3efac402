"""Fixtures of the producer's tests: a server, a client of it, and the real command line."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pytest
import redis as redis_py

from tests.farm.zygote import forked_worker
from tests.producer import forker
from tests.redis_server import RedisServer, fresh_server
from tests.worker.run_worker import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with fresh_server() as server:
        yield server


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[redis_py.Redis]:
    with redis_server.connect() as client:
        client.flushall()
        yield client


class Shell:
    """Calls `draftmill` as a user does, in a folder of its own and with a data folder of its own."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.environment = {key: value for key, value in os.environ.items() if key != "REDIS_URL"}
        self.environment["DRAFTMILL_HOME"] = str(home)

    def write(self, name: str, content: str | bytes) -> str:
        (self.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    def lines(self, name: str) -> list[bytes]:
        return (self.folder / name).read_bytes().splitlines()

    def start(self, *arguments: str, stderr: int | IO[bytes] = subprocess.PIPE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "draftmill", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        if forker.can_fork(self.environment, stdin):
            return forker.run(arguments, self.folder, self.environment, stdin, seconds=120)
        process = self.start(*arguments)
        out, err = process.communicate(stdin, timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@contextmanager
def private_shell(folder: Path) -> Iterator[Shell]:
    """A shell in `folder`; the private Redis that its commands may start ends with it."""
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as home:
        shell = Shell(folder, Path(home))
        yield shell
        if Path(home, "redis").exists():
            shell("redis", "stop")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with private_shell(tmp_path) as shell:
        yield shell


@pytest.fixture
def worker(redis: redis_py.Redis, redis_server: RedisServer, shell: Shell) -> Iterator[Callable[[], None]]:
    """Starts a worker of set speed when called; commands use its Redis."""
    shell.environment["REDIS_URL"] = redis_server.url
    with ExitStack() as stack:

        def start() -> None:
            spool = str(redis_server.folder / "spool")
            stack.enter_context(forked_worker(Settings(redis_server.url, spool, round_seconds=0.01, lease=5)))

        yield start
