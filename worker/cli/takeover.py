"""A worker is killed in the middle of a batch, and another one takes over: every line must have exactly one result.

All goes through draftmill's own commands, in a folder of its own with a private Redis of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event

from ...engine.models import boxed
from ...engine.models.kernels_for import VARIABLE
from ...engine.selftest.boxed_pair import have
from ...engine.selftest.check import Check, Skipped, Wrong
from ...kernels.race.keys import STOCK
from ...producer.queue import batches
from ...producer.queue.connect import connect
from ...producer.queue.errors import NO_REDIS

DRAFTMILL = (sys.executable, "-m", "draftmill")

LINES, ROWS = 20, 8
SHORT, FEW = 4, 4
"""So many lines have so few tokens: when they are done, others are being generated, and yet others wait."""

SETTINGS = ("--depth", "0", "--max-rows", str(ROWS), "--memory", "512M", "--lease", "3s", "--until-closed")
"""Of its workers. They end with this process, whatever becomes of it."""

PATIENCE = 120.0
"""Seconds until a worker must have brought results, its start included."""


def takeover_check(
    folder: Path, tokens: int, draftmill: Sequence[str] = DRAFTMILL, given_up: Event | None = None
) -> Check:
    """The check, with lines of so many tokens, of the command `draftmill`; `folder` is the cache of models. Once it is
    `given_up`, it ends within a few seconds.
    """
    return Check("kill and resume", partial(take_over, folder, tokens, draftmill, given_up or Event()))


def take_over(folder: Path, tokens: int, draftmill: Sequence[str], given_up: Event) -> str:
    """Run a batch, and kill its first worker when it has begun to bring results.

    Raises:
        Wrong: a line has no result or several, or a command fails.
        Skipped: there is no model or no Redis, nothing was left to be taken over, or it was given up.
    """
    have(folder)
    with stage(folder, draftmill, given_up) as here:
        prompts, out = here.folder / "prompts.jsonl", here.folder / "out.jsonl"
        prompts.write_text("".join(f"{prompt(n, tokens)}\n" for n in range(LINES)))
        batch = here.run("submit", str(prompts), "--pair", boxed.NAME).strip()
        first = here.start("worker", "--pair", boxed.NAME, *SETTINGS)
        here.wait(lambda: here.ended(batch) > 0, first)
        first.kill()
        first.wait()
        done = here.ended(batch)
        second = here.start("worker", "--pair", boxed.NAME, *SETTINGS)
        here.wait(lambda: here.ended(batch) == LINES, second)
        here.run("collect", batch, "-o", str(out))
        if flaw := flaw_of(ids(out)):
            raise Wrong(flaw)
    if done == LINES:
        raise Skipped("the worker was too fast to be killed in time")
    return f"killed after {done} of {LINES} lines; another worker took over, and each line has one result"


def prompt(number: int, tokens: int) -> str:
    """A line of the batch."""
    most = FEW if number < SHORT else tokens
    body = {"id": f"line-{number}", "prompt": f"{number} bottles of beer on the wall,", "max_tokens": most}
    return json.dumps(body | {"ignore_eos": True})


def ids(out: Path) -> list[str]:
    """Whose results are in OUT."""
    return [json.loads(line)["custom_id"] for line in out.read_text("utf-8").splitlines()]


def flaw_of(found: Sequence[str]) -> str | None:
    """What is wrong with results for these lines, in one line; None if there is exactly one for each."""
    counts = Counter(found)
    lost = [id for id in (f"line-{number}" for number in range(LINES)) if not counts[id]]
    twice = [id for id, count in counts.items() if count > 1]
    said = [f"no result for {', '.join(lost)}"] if lost else []
    said += [f"several results for {', '.join(twice)}"] if twice else []
    return "; ".join(said) or None


@dataclass
class Stage:
    """A folder of its own in which commands run; what each process says goes to a file there."""

    folder: Path
    draftmill: Sequence[str]
    environment: dict[str, str]
    given_up: Event
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, *words: str) -> str:
        """What a command prints; raises Wrong if it fails, and Skipped if there is no Redis for it."""
        done = subprocess.run(
            [*self.draftmill, *words], env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise (Skipped if done.returncode == NO_REDIS else Wrong)(f"draftmill {words[0]}: {said}")
        return done.stdout

    def ended(self, batch: str) -> int:
        """How many lines of a batch have a recorded outcome."""
        with connect(f"unix://{self.folder}/redis/redis.sock") as redis:
            status = batches.status(redis, batch)
        return status.ended if status else 0

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """A command that goes on."""
        with self._log(len(self.started)).open("wb") as log:
            process = subprocess.Popen(
                [*self.draftmill, *words], env=self.environment, stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        self.started.append(process)
        return process

    def wait(self, until: Callable[[], bool], worker: subprocess.Popen[bytes]) -> None:
        """Wait until something is so; raises Wrong if the worker that is needed for it ends, or takes too long, and
        Skipped if that is given up.
        """
        deadline = time.monotonic() + PATIENCE
        while not until():
            if self.given_up.is_set():
                raise Skipped("interrupted")
            if worker.poll() is not None:
                raise Wrong(f"a worker ended with code {worker.returncode}: {self.last_line(worker)}")
            if time.monotonic() > deadline:
                raise Wrong(f"nothing came for {PATIENCE:g} s: {self.last_line(worker)}")
            time.sleep(0.03)

    def last_line(self, process: subprocess.Popen[bytes]) -> str:
        """What a process has said last."""
        said = self._log(self.started.index(process)).read_text("utf-8", "replace").strip().splitlines()
        return said[-1] if said else "it said nothing"

    def _log(self, number: int) -> Path:
        return self.folder / f"{number}.log"


@contextmanager
def stage(shared: Path, draftmill: Sequence[str], given_up: Event) -> Iterator[Stage]:
    """A stage with the models of a `shared` cache; in the end all that it has started is gone, its Redis too.

    Its workers race no kernels and keep no measurements: other checks run at the same time.
    """
    # Not in the usual folder for such things: on a Mac its path is too long for a socket.
    with tempfile.TemporaryDirectory(prefix="draftmill-", dir="/tmp") as folder:
        cache = Path(folder) / "cache"
        cache.mkdir()
        (cache / "models").symlink_to((shared / "models").absolute())
        environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        environment |= {"DRAFTMILL_HOME": folder, "DRAFTMILL_CACHE": str(cache), VARIABLE: STOCK}
        here = Stage(Path(folder), draftmill, environment, given_up)
        try:
            yield here
        finally:
            for process in here.started:
                process.kill()
                process.wait()
            with suppress(Wrong, Skipped, subprocess.TimeoutExpired):
                here.run("redis", "stop")
