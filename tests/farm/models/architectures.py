"""`draftmill run` with a small model of every architecture: mlx-lm's own tokens, whatever happens meanwhile.

Ragged prompts are answered side by side, beside another batch that is cancelled while it runs, and the worker is killed
once. What is in OUT at the end is compared with what mlx-lm generates in another process, token for token, in float32.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import redis as redis_py

from draftmill.producer.queue import batches
from draftmill.producer.queue.errors import BUG
from draftmill.worker import blas
from tests.engine.expected import common
from tests.farm.figure import Figure
from tests.producer.conftest import Shell

from .expected import LONGEST
from .folders import CHARACTERS, NAMES

AT_ONCE = 3
"""Architectures that are tried side by side, since most of a run waits for the leases of the killed worker."""

LONG, ENDLESS = 2500, 3500
"""Tokens of the line that runs when the worker is killed, and of those that are cancelled."""

NEAR = 1e-5
"""Two choices of so small a margin may change places: float32 adds in another order beside other rows."""

TIE = "near tie"
PATIENCE = 900.0
"""Seconds that each step may take on a machine that does other work as well."""

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""The models are so small that a second thread only waits."""


@dataclass(frozen=True)
class Trial:
    """What came of one architecture: the engine that served it, and which lines were not as they should be."""

    name: str
    engine: str
    rows: int
    ties: int
    wrong: tuple[str, ...]
    seconds: float

    @property
    def row(self) -> str:
        equal = self.rows - self.ties - len(self.wrong)
        what = [f"{self.ties} left at a near tie"] if self.ties else []
        rest = "; ".join([*what, *self.wrong])
        return f"| {self.name} | {self.engine} | {self.rows} | {equal} | {rest} | {self.seconds:.0f} |"


def architectures(full: bool) -> Figure:
    """Every architecture that is tried at all; at small size one of those that have an adapter.

    A table of them goes to stderr: the suite's own is on stdout.
    """
    names = NAMES if full else ["qwen3"]
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as place:
        folder = Path(place)
        asked = list(_lines())
        (folder / "in.jsonl").write_bytes(b"\n".join(orjson.dumps(line) for line in asked))
        endless = [line | {"body": line["body"] | {"max_tokens": ENDLESS, "ignore_eos": True}} for line in asked[:3]]
        (folder / "cancelled.jsonl").write_bytes(b"\n".join(orjson.dumps(line) for line in endless))
        with ThreadPoolExecutor(AT_ONCE) as pool, _expected(folder, names) as answers:
            print("| architecture | engine | rows | equal | others | seconds |", file=sys.stderr)
            print("|---|---|---|---|---|---|", file=sys.stderr, flush=True)
            trials = list(pool.map(lambda answer: _try(folder, **answer), answers))
    wrong = [trial.name for trial in trials if trial.wrong]
    rows, ties = (sum(getattr(trial, name) for trial in trials) for name in ("rows", "ties"))
    text = f"{len(trials)} architectures, {rows} rows, {ties} left mlx-lm's tokens at a near tie"
    return Figure(text + (f"; wrong: {', '.join(wrong)}" if wrong else ""), len(trials) == len(names) and not wrong)


def _lines() -> Iterator[dict[str, Any]]:
    """Ragged prompts without a template; the fourth is long enough to be killed in the middle."""
    dice = random.Random(11)
    for n in range(10):
        prompt = "".join(dice.choices(CHARACTERS, k=dice.randint(3, 60)))
        body = {"prompt": prompt, "max_tokens": LONG if n == 3 else dice.randint(5, 40), "temperature": 0}
        if n == 3:
            body["ignore_eos"] = True
        yield {"custom_id": f"r-{n}", "method": "POST", "url": "/v1/completions", "body": body}


@contextmanager
def _expected(folder: Path, names: list[str]) -> Iterator[Iterator[dict[str, Any]]]:
    """Makes the models, each in a folder of its name, with the tokens that mlx-lm gives for the lines, as they come."""
    fast = {"LD_PRELOAD": library} if blas.wanted() and (library := blas.library()) else {}
    command = [sys.executable, "-m", "tests.farm.models.expected", str(folder), str(folder / "in.jsonl"), *names]
    with subprocess.Popen(command, env=os.environ | ONE_THREAD | fast, stdout=subprocess.PIPE) as process:
        assert process.stdout
        yield (orjson.loads(line) for line in process.stdout)


def _try(folder: Path, name: str, answers: list[dict[str, Any]]) -> Trial:
    trial = _tried(folder, name, answers)
    print(trial.row, file=sys.stderr, flush=True)
    return trial


def _tried(folder: Path, name: str, answers: list[dict[str, Any]]) -> Trial:
    begin = time.monotonic()
    try:
        engine, got = _generate(folder, name)
    except Trouble as trouble:
        return Trial(name, "?", len(answers), 0, (str(trouble),), time.monotonic() - begin)
    ties, wrong = 0, []
    for n, answer in enumerate(answers):
        what = _difference(answer, got.get(f"r-{n}"))
        ties += what == TIE
        wrong += [f"r-{n}: {what}"] if what not in ("", TIE) else []
    return Trial(name, engine, len(answers), ties, tuple(wrong), time.monotonic() - begin)


def _difference(expected: dict[str, Any], line: dict[str, Any] | None) -> str:
    """In which way a line of OUT is not what mlx-lm gives."""
    if line is None:
        return "no result"
    body = line["response"]["body"]
    (choice,) = body["choices"]
    tokens, margins = expected["tokens"], expected["margins"]
    spoken = [place for place, token in enumerate(tokens) if token]  # end tokens read nothing
    text = "".join(CHARACTERS[tokens[place] - 1] for place in spoken)
    said, count = choice["text"], len(tokens)
    if expected["asked"] > LONGEST:
        said, count = said[: len(text)], expected["asked"]
    got = said, choice["finish_reason"], body["usage"]["completion_tokens"]
    if got == (text, expected["reason"], count):
        return ""
    place = min([*spoken, len(tokens)][common(got[0], text)], len(margins) - 1)
    if margins[place] < NEAR:
        return TIE
    return f"differs from token {place} of {len(tokens)} on (margin {margins[place]:.1e}), ends by {got[1]}"


def _last_line(said: str) -> str:
    return (said.strip().splitlines() or ["nothing"])[-1]


class Trouble(Exception):
    """A run did not go as it should; the message says how."""


def _generate(folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    """The engine that served a model, and the lines of OUT by their ids, after a cancelled batch and a kill -9."""
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as home:
        shell, out = Shell(folder, Path(home)), Path(home, "out.jsonl")
        shell.environment |= {"DRAFTMILL_CACHE": str(Path(home, "cache")), **ONE_THREAD}
        command = ("run", "in.jsonl", "-o", str(out), "--pair", str(folder / name))
        try:
            other = _said(shell, "submit", "cancelled.jsonl", "--pair", str(folder / name)).strip()
            with redis_py.Redis(unix_socket_path=str(Path(home, "redis", "redis.sock"))) as redis:
                said = _killed(shell.start(*command), redis, other)
                _said(shell, *command)
                state = batches.status(redis, other)
        finally:
            _said(shell, "redis", "stop")
        lines = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    if not state or not state.complete or not state.cancelled:  # a line may have ended before it was cancelled
        raise Trouble(f"the other batch has other lines than cancelled ones: {state}")
    found = {line["custom_id"]: line for line in lines}
    if len(found) < len(lines):
        raise Trouble(f"{len(lines) - len(found)} lines are twice in OUT")
    plain = [line for line in said.splitlines() if "plain: no adapter for " in line]
    return plain[0].partition("no adapter for ")[2].partition(", ")[2] or "plain" if plain else "ours", found


def _killed(process: subprocess.Popen[str], redis: redis_py.Redis, other: str) -> str:
    """Cancels the other batch while it runs, then kills the worker while a line of ours runs; what `run` says then."""

    def state(mine: bool) -> batches.BatchStatus | None:
        return next((each for each in batches.list_batches(redis) if (each.id != other) == mine), None)

    def wait(what: str, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not until():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise Trouble(f"before {what}: {_last_line(process.communicate()[1])}")
            time.sleep(0.02)

    def both_run() -> bool:
        ours, theirs = state(mine=True), state(mine=False)
        return bool(ours and theirs and ours.running and theirs.running)

    wait("both batches ran", both_run)
    batches.cancel(redis, other)
    wait("the other one was cancelled", lambda: (theirs := state(mine=False)) is not None and not theirs.running)
    wait("a line ran", lambda: (ours := state(mine=True)) is not None and ours.running > 0)
    keys: Any = redis.smembers("rq:workers")
    for key in keys:
        pid: Any = redis.hget(key, "pid")
        os.kill(int(pid), signal.SIGKILL)
    _, said = process.communicate(timeout=PATIENCE)
    if process.returncode != BUG:
        raise Trouble(f"run whose worker was killed ended with {process.returncode}: {_last_line(said)}")
    return said


def _said(shell: Shell, *arguments: str) -> str:
    """What a command writes to its output; raises Trouble if it does not end well."""
    process = shell.start(*arguments)
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Trouble(f"{arguments[0]} takes longer than {PATIENCE:.0f} s") from None
    if process.returncode:
        raise Trouble(f"{arguments[0]} ended with {process.returncode}: {_last_line(err)}")
    return out
