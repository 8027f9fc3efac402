"""Parts of the self-test, each in a process of its own.

They compile side by side, which is most of what a first run waits for. One that dies, as when a driver aborts its
process, takes nothing with it, and is itself a finding.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from .check import Check, Finding

PYTHON = (sys.executable, "-m", "draftmill.engine.selftest")


@contextmanager
def together(names: Sequence[str], words: Sequence[str], python: Sequence[str] = PYTHON) -> Iterator[list[Part]]:
    """Run parts at the same time, with these arguments behind the name of each; in the end their processes are gone."""
    with tempfile.TemporaryDirectory(prefix="draftmill-") as folder:
        parts = [Part.start(name, words, Path(folder) / name, python) for name in names]
        try:
            yield parts
        finally:
            for part in parts:
                part.process.kill()
                part.process.wait()
                part.told.close()


@dataclass(frozen=True)
class Part:
    """A process that tells which check it begins and what each one found, a line of JSON each, through a pipe."""

    name: str
    process: subprocess.Popen[bytes]
    told: IO[str]
    said: Path

    @staticmethod
    def start(name: str, words: Sequence[str], said: Path, python: Sequence[str]) -> Part:
        """Start it; all that it prints goes to the file `said`."""
        reading, writing = os.pipe()
        with said.open("wb") as log:
            process = subprocess.Popen(
                [*python, str(writing), name, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
            )
        os.close(writing)
        return Part(name, process, os.fdopen(reading, encoding="utf-8"), said)

    def findings(self) -> Iterator[Finding]:
        """What its checks found, as they end. The one in which it dies is wrong."""
        check, began = self.name, time.monotonic()
        for line in self.told:
            told = json.loads(line)
            if "verdict" in told:
                yield Finding(**told)
            else:
                check, began = told["check"], told["began"]
        if code := self.process.wait():
            lines = self.said.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
            found = f"its process {ending(code)}: {lines[-1]}"[:300]
            yield Finding(check, "wrong", found, round(time.monotonic() - began, 1))


def ending(code: int) -> str:
    """How a process ended, by the code that Python has for it."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def tell(checks: Callable[[], Iterator[Check]], pipe: int) -> None:
    """Run checks, and tell through this file descriptor."""
    with os.fdopen(pipe, "w", encoding="utf-8") as told:
        for check in checks():
            print(json.dumps({"check": check.name, "began": time.monotonic()}), file=told, flush=True)
            print(json.dumps(asdict(check.finding())), file=told, flush=True)
