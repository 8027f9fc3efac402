"""A day of a farm in minutes: workers as fast as real chips share 1,000 batches of four users.

Queue, workers and clients are the real ones, each worker a process; only engines are simulated (`engine.py`), in a time
that runs faster. Leases are shorter than a minute, but not by as much: heartbeats alone would fill the machine.
"""

from __future__ import annotations

import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from draftmill.producer.queue import batches, fleet, wire
from tests.farm.farm import Farm
from tests.farm.figure import Figure
from tests.farm.simulated import chips, ideal
from tests.worker.run_worker import PAIR

ROWS = 3
"""Of each worker; each has its part of the chip's speed, as if rows side by side gained nothing."""

MEDIAN, SPREAD, MOST = 8_000, 0.8, 64_000
"""Tokens of a line: long answers of a model that thinks. Their logarithm is normally distributed, this wide."""


@dataclass(frozen=True)
class Load:
    """What a user submits: so many batches of so many lines each."""

    user: str
    batches: int
    lines: int


@dataclass(frozen=True)
class Plan:
    """A load for so many `workers`, to last about so many `seconds` of the test's time."""

    workers: int
    seconds: float
    loads: Sequence[Load]

    @property
    def lines(self) -> int:
        return sum(load.batches * load.lines for load in self.loads)

    def sizes(self) -> list[int]:
        """Of all lines, in tokens; the same each time."""
        dice = random.Random(28)
        return [min(MOST, int(dice.lognormvariate(0, SPREAD) * MEDIAN) + 1) for _ in range(self.lines)]

    def speeds(self) -> list[float]:
        """Of each worker's rows, in tokens per simulated second."""
        return [speed / ROWS for speed in chips.fleet(self.workers)]


FULL = Plan(100, 640, [Load("ann", 10, 400), Load("bob", 90, 100), Load("cid", 200, 50), Load("dee", 700, 17)])
SMALL = Plan(8, 4, [Load("ann", 1, 100), Load("bob", 4, 30), Load("cid", 10, 14)])


@dataclass(frozen=True)
class Ended:
    """A line that ended, `seconds` after the farm began, in the test's time."""

    seconds: float
    user: str
    tokens: int


def day(full: bool) -> Figure:
    """The last line ends at most 5 % later than in the ideal schedule, and users share within 10 %.

    At small size, beside other tests, nothing is said of the end.
    """
    plan = FULL if full else SMALL
    sizes, rows = plan.sizes(), [speed for speed in plan.speeds() for _ in range(ROWS)]
    scale = ideal.bound(sizes, rows) / plan.seconds
    best = ideal.list_schedule(sizes, rows)
    with Farm(rows=ROWS, lease=8) as farm:
        names = _submit(farm, plan, sizes)
        begin, before = _start(farm, plan, scale)
        farm.wait(lambda: not farm.redis.zcard(f"draftmill:unended:{wire.WIRE}"), 3 * plan.seconds)
        after: Any = farm.redis.info()
        ended, results = _ended(farm, names, begin)
        notes = _stop(farm)
    took = ended[-1].seconds * scale
    late, unfair = took / best - 1, _unfairness(ended, plan)
    claims = sorted(second for note in notes for second in note["claims"])
    wall = ended[-1].seconds
    cpu = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys")) / wall
    overslept = sum(note["late"] for note in notes) / sum(note["due"] for note in notes)
    text = (
        f"{results:,} results of {plan.lines:,} lines in {len(names):,} batches; "
        f"{took / 3600:.2f} h, {late:+.1%} beside the ideal {best / 3600:.2f} h "
        f"(no schedule beats {ideal.bound(sizes, rows) / 3600:.2f} h); "
        f"users' lines within {unfair:.1%} of alike; "
        f"claims: median {statistics.median(claims):.4f} s, 99 % {claims[len(claims) * 99 // 100]:.3f} s; "
        f"Redis: {cpu:.0%} of a core, {after['used_memory_peak'] / 2**20:.0f} MB at most; "
        f"{scale:.0f} times as fast as life, rows {overslept:.1%} late for want of CPU"
    )
    once = results == len(ended) == plan.lines
    return Figure(text, once and (unfair <= 0.1 and late <= 0.05 if full else unfair <= 0.2))


def _submit(farm: Farm, plan: Plan, sizes: Sequence[int]) -> dict[str, str]:
    """Submits all batches, users in turns; returns each one's user."""
    users: dict[str, str] = {}
    left = iter(sizes)
    for load in plan.loads:
        for number in range(load.batches):
            name = f"{load.user}-{number}"
            users[name] = load.user
            info = batches.BatchInfo(name, PAIR, "normal", load.lines, "simulated", load.user)
            batches.create(farm.redis, info)
            batches.submit_chunk(farm.redis, info, list(_bodies(name, load.lines, left)))
    return users


def _bodies(batch: str, lines: int, sizes: Iterator[int]) -> Iterator[wire.JobBody]:
    for n in range(lines):
        sampling = wire.Sampling(max_tokens=next(sizes))
        yield wire.JobBody(batch=batch, custom_id=f"r-{n}", pair=PAIR, prompts=("x",), sampling=sampling, line=n + 1)


def _start(farm: Farm, plan: Plan, scale: float) -> tuple[float, Any]:
    """Lets all workers begin at one time; returns when that was, by Redis's clock, and what Redis said of itself."""
    farm.redis.set("rq:suspended", 1)
    for speed in plan.speeds():
        farm.start(row_speed=speed * scale, notes=str(farm.folder))

    def at_work() -> bool:
        return sum(report.state == "working" for report in fleet.reports(farm.redis)) == plan.workers

    assert farm.wait(at_work, 120)
    before: Any = farm.redis.info()
    seconds, microseconds = farm.redis.time()
    with farm.redis.pipeline() as pipe:
        pipe.delete("rq:suspended")
        pipe.rpush(wire.bell_key(PAIR), *[""] * plan.workers)
        pipe.execute()
    return seconds + microseconds / 1e6, before


def _ended(farm: Farm, users: dict[str, str], begin: float) -> tuple[list[Ended], int]:
    """The lines that have a completion, in the order in which they ended, each once; and how many results there are."""
    ended: dict[tuple[str, str], Ended] = {}
    results = 0
    for batch, user in users.items():
        for result in batches.results(farm.redis, batch):
            line = orjson.loads(result.line)
            results += 1
            if line["error"] is None:
                seconds = int(result.entry.partition("-")[0]) / 1000 - begin
                tokens = line["response"]["body"]["usage"]["completion_tokens"]
                ended[batch, line["custom_id"]] = Ended(seconds, user, tokens)
    return sorted(ended.values(), key=lambda line: line.seconds), results


def _unfairness(ended: Sequence[Ended], plan: Plan) -> float:
    """How far the lines that users had are from alike, while all of them had lines in the queue."""
    last = {load.user: int(0.9 * load.batches * load.lines) for load in plan.loads}
    counts: Counter[str] = Counter()
    for line in ended:
        counts[line.user] += 1
        if counts[line.user] == last[line.user]:
            break
    mean = sum(counts.values()) / len(plan.loads)
    return max(abs(counts[load.user] / mean - 1) for load in plan.loads)


def _stop(farm: Farm) -> list[dict[str, Any]]:
    """Stops all workers; returns what they have noted."""
    for pid in farm.workers:
        farm.signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while any(map(farm.alive, farm.workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [orjson.loads(path.read_bytes()) for path in farm.folder.glob("*.json")]
