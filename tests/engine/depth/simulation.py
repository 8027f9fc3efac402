"""A simulated machine that works through requests round by round, to compare ways of choosing depths."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from draftmill.engine.depth.budget import Budget
from draftmill.engine.depth.depth_choice import Candidate
from draftmill.engine.depth.round_cost import Cost, Point, plan
from draftmill.engine.depth.round_timing import Forecast

BLOCK = 16

STRETCH = 0.3
"""Seconds."""


@dataclass(frozen=True)
class Machine:
    """A cost curve: weights are read in `base` seconds, arithmetic binds from `knee` packed tokens on, and tokens are
    computed partly by tiles. A verified token costs the more of `flat`, even where arithmetic does not bind.

    What no measurement of the models shows: each drafted token takes `host` seconds more; with `noise` rounds scatter,
    and one in a hundred is interrupted; and every other stretch of time all rounds take `slow` times as long.
    """

    name: str
    base: float
    knee: float
    tile: int
    flat: float = 0.1
    draft: float = 0.15
    per_row: float = 0.0
    per_context: float = 0.0
    host: float = 0.0
    noise: float = 0.0
    slow: float = 1.0

    def _curve(self, tokens: int) -> float:
        tiled = (tokens + math.ceil(tokens / self.tile) * self.tile) / 2
        return max(1 + self.flat * tokens / self.knee, (1 + self.flat) * tiled / self.knee)

    def round(self, tokens: int, rows: int, context: int) -> float:
        return self.base * (self._curve(tokens) + self.per_row * rows + self.per_context * context)

    def drafting(self, rows: int, context: int) -> float:
        if not rows:
            return 0.0
        return self.base * self.draft * (self._curve(rows * BLOCK) + self.per_row * rows + self.per_context * context)

    def measure(self, max_rows: int, noise: float, seed: int = 0) -> Cost:
        """The cost model that a worker would fit on this machine."""
        chance = random.Random(seed)
        points: dict[bool, list[Point]] = {False: [], True: []}
        for shape in plan(max_rows, BLOCK):
            context = shape.rows * shape.context
            seconds = (
                self.drafting(shape.rows, context) if shape.draft else self.round(shape.tokens, shape.rows, context)
            )
            for _ in range(3):
                noisy = seconds * math.exp(chance.gauss(0, noise))
                points[shape.draft].append(Point(shape.tokens, shape.rows, context, noisy))
        return Cost.fit(points[False], points[True])


M4_PRO = Machine("M4 Pro", 0.010, 8, 8, per_row=0.002, per_context=2e-6)
M5_MAX = Machine("M5 Max", 0.006, 30, 16, per_row=0.002, per_context=2e-6)
H200 = Machine("H200", 0.004, 200, 64, per_row=0.001, per_context=1e-6)
REFERENCE_BLAS = Machine("reference BLAS", 0.020, 1, 1, flat=0.0, draft=0.1)
BUSY_HOST = replace(H200, name="H200, busy host", host=5e-5, noise=0.1, slow=1.6)
MACHINES = (M4_PRO, M5_MAX, H200)


@dataclass(frozen=True)
class Job:
    """A request: its prompt's length and, for each of its tokens, the chance that a draft of it is accepted."""

    key: str
    prompt: int
    chances: Sequence[float]
    draws: Sequence[float]

    def accepted(self, done: int, depth: int) -> int:
        """Of `depth` tokens drafted after the first `done`; the same in every simulation."""
        for place in range(depth):
            if self.draws[done + place] >= self.chances[done + place]:
                return place
        return depth


def jobs(
    count: int, chance: Callable[[int, float], float], seed: int = 0, lengths: tuple[int, int] = (100, 300)
) -> list[Job]:
    """Requests; `chance` of acceptance by number of the request and how far it has come, 0 to 1."""
    source = random.Random(seed)
    requests: list[Job] = []
    for number in range(count):
        length = source.randint(*lengths)
        chances = [chance(number, place / length) for place in range(length)]
        requests.append(Job(str(number), source.randint(100, 1000), chances, [source.random() for _ in chances]))
    return requests


def equal(chance: float) -> Callable[[int, float], float]:
    return lambda number, place: chance


def differing(low: float, high: float) -> Callable[[int, float], float]:
    """Each request has a chance of its own."""
    return lambda number, place: random.Random(number).uniform(low, high)


def drifting(low: float, high: float, count: int) -> Callable[[int, float], float]:
    """All requests together go up and down twice."""
    middle, swing = (low + high) / 2, (high - low) / 2
    return lambda number, place: middle + swing * math.sin(4 * math.pi * (number + place) / count)


def turning(low: float, high: float) -> Callable[[int, float], float]:
    """Each request turns from good to bad, or from bad to good, when half of it is done."""
    return lambda number, place: high if (place < 0.5) == (number % 2 == 0) else low


@dataclass
class Outcome:
    tokens: int = 0
    seconds: float = 0.0
    rounds: int = 0
    drafted: int = 0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def work(machine: Machine, rows: int, requests: Sequence[Job], chooser: Budget | int) -> Outcome:
    """Work through the requests, `rows` at a time, at a fixed depth or by a budget, which learns a round late."""
    waiting = deque(requests)
    running: list[tuple[Job, int]] = []
    outcome = Outcome()
    late: list[tuple[str, int, int]] = []
    launched: Forecast | None = None
    seconds, chance = 0.0, random.Random(1)
    while waiting or running:
        while waiting and len(running) < rows:
            running.append((waiting.popleft(), 0))
        candidates = [Candidate(job.key, len(job.draws) - done, job.prompt + done) for job, done in running]
        if isinstance(chooser, Budget):
            depths = chooser.depths(candidates)
            chooser.ran(launched, chooser.forecast, seconds)
            launched = chooser.forecast
            for key, depth, accepted in late:
                chooser.observe(key, depth, accepted)
        else:
            depths = [min(chooser, candidate.left - 1) for candidate in candidates]
        late = []
        following: list[tuple[Job, int]] = []
        for (job, done), depth in zip(running, depths, strict=True):
            accepted = job.accepted(done, depth)
            late.append((job.key, depth, accepted))
            if done + accepted + 1 < len(job.draws):
                following.append((job, done + accepted + 1))
            elif isinstance(chooser, Budget):
                chooser.forget(job.key)
            outcome.tokens += accepted + 1
        context = sum(candidate.context for candidate in candidates)
        drafting = [candidate.context for candidate, depth in zip(candidates, depths, strict=True) if depth]
        seconds = machine.round(len(depths) + sum(depths), len(depths), context)
        seconds += machine.drafting(len(drafting), sum(drafting))
        seconds += machine.host * sum(depths)
        if machine.noise:
            seconds *= math.exp(chance.gauss(0, machine.noise)) * (5 if chance.random() < 0.01 else 1)
        seconds *= machine.slow if outcome.seconds // STRETCH % 2 else 1
        outcome.seconds += seconds
        outcome.rounds += 1
        outcome.drafted += sum(depths)
        running = following
    return outcome


def hindsight(machine: Machine, rows: int, requests: Sequence[Job], depths: Sequence[int] = range(BLOCK)) -> Outcome:
    """The best fixed depth."""
    return max((work(machine, rows, requests, depth) for depth in depths), key=lambda outcome: outcome.rate)
