"""Timing arms against each other: in turns, warmed up, a failing arm leaving its reason and stopping nobody."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TypeVar

import mlx.core as mx

from ..request import Request
from .arms import Arm, BenchError, MissingPeer, Session, synchronize

T = TypeVar("T")

REFILL = 2
"""Rounds after a pause that are not timed: engines run one round ahead, so the first ones find theirs done."""

WARM = 64
"""Tokens of each row before anything is timed: the row budget learns, as it would in the first seconds of a night."""

ENOUGH = 8
"""Rounds of a sample, if they take longer than `PATIENCE` together."""

PATIENCE = 1.0
"""Seconds after which a sample that has enough rounds may end."""

Expected = Callable[[Request, list[int]], bool]
"""Whether these are the tokens that a request should have generated."""


@dataclass(frozen=True)
class Sample:
    """One timing: tokens of all rows, the rounds that brought them, and seconds."""

    tokens: int
    rounds: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


@dataclass
class Cell:
    """What one arm did: samples in the order of the turns, or why there are none.

    Attributes:
        prefill: seconds until every row had its first token, where that was timed.
        tokens_per_round: of a row, where it is known.
        error: why the arm was not timed, in one line.
        missing: that is because it is not installed.
        requests: how many it ran, if not all.
    """

    samples: list[Sample] = field(default_factory=list)
    prefill: float | None = None
    tokens_per_round: float | None = None
    error: str | None = None
    missing: bool = False
    requests: int | None = None

    def fail(self, reason: str) -> None:
        """Its tokens were wrong, or what they were computed from: how fast that went is of no interest."""
        self.error = reason
        self.samples.clear()

    @property
    def rate(self) -> float:
        """Tokens per second, the median."""
        return median(sample.rate for sample in self.samples)

    @property
    def seconds(self) -> float:
        """The median."""
        return median(sample.seconds for sample in self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The slowest and the fastest sample's tokens per second."""
        rates = [sample.rate for sample in self.samples]
        return min(rates), max(rates)


def ratios(cell: Cell, base: Cell) -> tuple[float, float, float]:
    """Median, least and most of how many times as fast as `base` a cell is, turn by turn."""
    turns = [a.rate / b.rate for a, b in zip(cell.samples, base.samples, strict=False)]
    return median(turns), min(turns), max(turns)


def steady(
    arms: Mapping[str, Callable[[], Arm]],
    requests: Sequence[Request],
    tokens: int,
    repeats: int,
    expected: Expected | None = None,
) -> dict[str, Cell]:
    """Time steady decoding: every arm prefills the requests once, then the arms take turns.

    Each turn lasts `tokens` / `repeats` tokens of every row, so all arms see the same contexts. Arms that cannot
    share the process with others come after them.
    """
    cells = {name: Cell() for name in arms}
    made = {name: arm for name in arms if (arm := attempt(cells[name], arms[name]))}
    together = [name for name, arm in made.items() if not arm.alone]
    for names in [together, *([name] for name, arm in made.items() if arm.alone)]:
        sessions: dict[str, Session] = {}
        for name in names:
            if session := attempt(cells[name], lambda name=name: start(cells[name], made[name], requests)):
                sessions[name] = session
        for _ in range(repeats):
            for name, session in list(sessions.items()):
                sample = attempt(cells[name], lambda session=session: turn(session, len(requests) * tokens / repeats))
                if sample is None:
                    sessions.pop(name).close()
                else:
                    cells[name].samples.append(sample)
        for name, session in sessions.items():
            cell = cells[name]
            cell.tokens_per_round = sum(s.tokens for s in cell.samples) / len(requests)
            cell.tokens_per_round /= sum(s.rounds for s in cell.samples)
            if wrong := other_tokens(requests, session.texts, expected) or session.flaw():
                cell.fail(wrong)
            session.close()
        sessions.clear()
        mx.clear_cache()
    return cells


def start(cell: Cell, arm: Arm, requests: Sequence[Request]) -> Session:
    """Prefill, timed, and warm up."""
    begin = time.perf_counter()
    session = arm.open(requests)
    cell.prefill = time.perf_counter() - begin
    generated = 0
    while generated < WARM * len(requests):
        generated += session.advance()
    synchronize()
    return session


def turn(session: Session, tokens: float) -> Sample:
    """Time rounds until there are so many tokens."""
    for _ in range(REFILL):
        session.advance()
    generated = rounds = 0
    begin = time.perf_counter()
    seconds = 0.0
    while generated < tokens and not (rounds >= ENOUGH and seconds > PATIENCE):
        generated += session.advance()
        rounds += 1
        seconds = time.perf_counter() - begin
    synchronize()
    return Sample(generated, rounds, seconds)


def whole(
    arms: Mapping[str, Callable[[], Arm]],
    requests: Sequence[Request],
    repeats: int,
    expected: Expected | None = None,
) -> dict[str, Cell]:
    """Time whole runs of the requests, prefill and all, by arms that take turns.

    Before that every arm runs a few tokens of the first two, untimed.
    """
    cells = {name: Cell() for name in arms}
    made = {name: arm for name in arms if (arm := attempt(cells[name], arms[name]))}
    few = [replace(r, sampling=replace(r.sampling, max_tokens=min(WARM, r.sampling.max_tokens))) for r in requests[:2]]
    failed = {name for name, arm in made.items() if attempt(cells[name], lambda arm=arm: arm.runner().run(few)) is None}
    for _ in range(repeats):
        for name in [name for name in made if name not in failed]:
            cell, arm = cells[name], made[name]
            run = attempt(cell, arm.runner)
            synchronize()
            begin = time.perf_counter()
            texts = attempt(cell, lambda run=run: run.run(requests)) if run else None
            seconds = time.perf_counter() - begin
            if texts is None:
                failed.add(name)
                continue
            cell.samples.append(Sample(sum(map(len, texts)), 0, seconds))
            cell.tokens_per_round = arm.tokens_per_round
            wrong = other_tokens(requests, texts, expected)
            if run and not wrong:
                wrong = attempt(cell, lambda run=run: run.flaw(requests)) or cell.error
            if wrong:
                cell.fail(wrong)
                failed.add(name)
            del run
            mx.clear_cache()
    return cells


def other_tokens(requests: Sequence[Request], texts: Sequence[list[int]], expected: Expected | None) -> str | None:
    """Which of the texts is not what was expected; None if none is, or nobody knows."""
    for request, text in zip(requests, texts, strict=True):
        if expected and not expected(request, text):
            return f"request {request.id} generated other tokens than expected"
    return None


def mixed_length(draw: random.Random, tokens: int) -> int:
    """How many tokens a request of a dataset is for: a sixteenth of `tokens` to all of them."""
    return draw.randint(max(1, tokens // 16), tokens)


def alike() -> Expected:
    """Every arm must generate what the first one to run a request did."""
    first: dict[str, list[int]] = {}
    return lambda request, text: first.setdefault(request.id, text) == text


def attempt(cell: Cell, action: Callable[[], T]) -> T | None:
    """What the action gives; if it fails, None, and the reason goes to the cell."""
    try:
        return action()
    except MissingPeer as error:
        cell.error, cell.missing = str(error), True
    except BenchError as error:
        cell.error = str(error)
    except Exception as error:  # whatever a peer or the device runs into must not stop the others
        line = (str(error).strip().splitlines() or [""])[0]
        cell.error = f"{type(error).__name__}: {line}"[:160]
    return None
