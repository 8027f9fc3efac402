"""Forks workers that are ready at once: reads `Settings` and a log's path as JSON lines, answers with process ids.

Importing takes a second and a worker does nothing before that a fork would break, so tests can afford hundreds of
workers.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path

import orjson

from tests.worker.run_worker import Settings, run

ROOT = Path(__file__).parents[2]


class Zygote:
    """The process that forks; it has `environment` besides this process's own, and ends with it at the latest."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
        )

    def start(self, settings: Settings, log: Path) -> int:
        """Forks a worker that logs to the end of `log`; returns its process id."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(orjson.dumps([asdict(settings), str(log)]) + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@cache
def shared_zygote() -> Zygote:
    """One for all tests of this process."""
    return Zygote({})


@contextmanager
def forked_worker(settings: Settings) -> Iterator[None]:
    """A worker that is killed in the end, and whose log nobody reads."""
    pid = shared_zygote().start(settings, Path(os.devnull))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            while True:  # until it is gone
                os.kill(pid, 0)
                time.sleep(0.002)


def main() -> None:
    gc.freeze()  # so that collections in the workers do not copy its pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            settings, log = orjson.loads(line)
            become(log)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = 1
            try:
                code = 0 if run(Settings(**settings)) else 130
            finally:
                os._exit(code)
        print(child, flush=True)


def become(log: str) -> None:
    """Gives this process streams of its own."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number, stream in enumerate((nowhere, nowhere, os.open(log, os.O_WRONLY | os.O_APPEND))):
        os.dup2(stream, number)


if __name__ == "__main__":
    main()
