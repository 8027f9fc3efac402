"""A simulated machine that works through requests round by round, to compare ways of choosing depths."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from draftmill.engine.depth.budget import Budget
from draftmill.engine.depth.depth_choice import Candidate
from draftmill.engine.depth.round_cost import Cost, Point, shapes_to_time
from draftmill.engine.depth.round_times import Forecast

BLOCK = 16

STRETCH = 0.3
"""Seconds."""


@dataclass(frozen=True)
class Machine:
    """A cost curve: weights are read in `base` seconds, arithmetic binds from `knee` packed tokens on, and tokens are
    computed partly by tiles. A verified token costs the more of `flat`, even where arithmetic does not bind.

    What no measurement of the models shows: each drafted token takes `host` seconds more; with `noise` rounds scatter,
    and one in a hundred is interrupted; and every other stretch of time all rounds take `slow` times as long. The host
    takes `build` seconds to build a round, half of which a measurement shows, `build_row` for each of its rows and
    `build_draft` for a draft's pass; it builds a round while the one before it runs. The first round with some number
    of tokens takes `plan` seconds more.
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
    build: float = 0.0
    build_row: float = 0.0
    build_draft: float = 0.0
    plan: float = 0.0

    def _curve(self, tokens: int) -> float:
        tiled = (tokens + math.ceil(tokens / self.tile) * self.tile) / 2
        return max(1 + self.flat * tokens / self.knee, (1 + self.flat) * tiled / self.knee)

    def round(self, tokens: int, rows: int, context: int) -> float:
        return self.base * (self._curve(tokens) + self.per_row * rows + self.per_context * context)

    def drafting(self, rows: int, context: int) -> float:
        if not rows:
            return 0.0
        return self.base * self.draft * (self._curve(rows * BLOCK) + self.per_row * rows + self.per_context * context)

    def building(self, rows: int, drafting: int) -> float:
        """Of the host."""
        return self.build + self.build_row * rows + (self.build_draft if drafting else 0.0)

    def measure(self, max_rows: int, noise: float, seed: int = 0) -> Cost:
        """The cost model that a worker would fit on this machine."""
        chance = random.Random(seed)
        points: dict[bool, list[Point]] = {False: [], True: []}
        for shape in shapes_to_time(max_rows, BLOCK):
            context = shape.rows * shape.context
            if shape.draft:
                seconds = self.drafting(shape.rows, context)
            else:
                seconds = max(self.build / 2, self.round(shape.tokens, shape.rows, context))
            for _ in range(3):
                noisy = seconds * math.exp(chance.gauss(0, noise))
                points[shape.draft].append(Point(shape.tokens, shape.rows, context, noisy))
        return Cost.fit(points[False], points[True], self.plan)


M4_PRO = Machine("M4 Pro", 0.010, 8, 8, per_row=0.002, per_context=2e-6)
M5_MAX = Machine("M5 Max", 0.006, 30, 16, per_row=0.002, per_context=2e-6)
H200 = Machine("H200", 0.004, 200, 64, per_row=0.001, per_context=1e-6)
REFERENCE_BLAS = Machine("reference BLAS", 0.020, 1, 1, flat=0.0, draft=0.1)
BUSY_HOST = replace(H200, name="H200, busy host", host=5e-5, noise=0.1, slow=1.6)
HOST_BOUND = replace(H200, name="H200, host-bound", build=0.005, build_row=5e-5, build_draft=0.0015)
PLANNING = replace(H200, name="H200, plans", plan=0.02)
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


def mixed(number: int, place: float) -> float:
    """Requests that would yield 1 to 8 tokens a round if all of a block were verified, side by side."""
    return chance_of(1 + number % 8)


@cache
def chance_of(tokens: float) -> float:
    """At which chance of acceptance a round with a whole block yields so many tokens."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**i for i in range(BLOCK)) < tokens else (low, middle)
    return low


def switching(low: float, high: float) -> Callable[[int, float], float]:
    """Good, bad, good, bad: requests of the same length that begin together change suddenly, and nearly together."""
    return lambda number, place: (high, low)[int(4 * place) % 2]


@dataclass
class Outcome:
    tokens: int = 0
    seconds: float = 0.0
    rounds: int = 0
    drafted: int = 0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def work(machine: Machine, rows: int, requests: Sequence[Job], chooser: Budget | int, seed: int = 1) -> Outcome:
    """Work through the requests, `rows` at a time, at a fixed depth or by a budget, which learns a round late."""
    waiting = deque(requests)
    running: list[tuple[Job, int]] = []
    outcome = Outcome()
    late: list[tuple[str, int, int]] = []
    launched: Forecast | None = None
    before, chance = 0.0, random.Random(seed)  # seconds that the round in flight takes the device
    planned: set[int] = set()
    while waiting or running:
        while waiting and len(running) < rows:
            running.append((waiting.popleft(), 0))
        candidates = [Candidate(job.key, len(job.draws) - done, job.prompt + done) for job, done in running]
        if isinstance(chooser, Budget):
            depths = chooser.depths(candidates)
        else:
            depths = [min(chooser, candidate.left - 1) for candidate in candidates]
        drafting = [candidate.context for candidate, depth in zip(candidates, depths, strict=True) if depth]
        seconds = max(before, machine.building(len(depths), len(drafting)))
        outcome.seconds += seconds
        if isinstance(chooser, Budget):
            chooser.ran(launched, chooser.forecast, seconds)
            launched = chooser.forecast
            for key, depth, accepted in late:
                chooser.observe(key, depth, accepted)
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
        before = machine.round(len(depths) + sum(depths), len(depths), context)
        before += machine.drafting(len(drafting), sum(drafting))
        before += machine.host * sum(depths)
        if machine.noise:
            before *= math.exp(chance.gauss(0, machine.noise)) * (5 if chance.random() < 0.01 else 1)
        before *= machine.slow if outcome.seconds // STRETCH % 2 else 1
        if len(depths) + sum(depths) not in planned:
            planned.add(len(depths) + sum(depths))
            before += machine.plan
        outcome.rounds += 1
        outcome.drafted += sum(depths)
        running = following
    outcome.seconds += before
    return outcome


def hindsight(machine: Machine, rows: int, requests: Sequence[Job], depths: Sequence[int] = range(BLOCK)) -> Outcome:
    """The best fixed depth."""
    return max((work(machine, rows, requests, depth) for depth in depths), key=lambda outcome: outcome.rate)
