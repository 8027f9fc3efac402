"""The fleet in Redis: what workers report of themselves, what operators ask of them, and users' limits.

Every function takes a synchronous `redis.Redis` with `decode_responses=False`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis as redis_py
from pydantic import TypeAdapter

from .wire import FLEET, LIMITS, RUNNING, SPENT, WORKERS, leased_key, worker_key

EVERYBODY = "*"
"""Stands for all machines of the fleet."""


@dataclass(frozen=True)
class Report:
    """What one worker said of itself in its last heartbeat, `age` seconds ago; `fields` are those of its hash."""

    name: str
    age: float
    fields: Mapping[str, str]

    def text(self, field: str) -> str:
        return self.fields.get(field, "")

    def number(self, field: str) -> float:
        return float(self.fields.get(field) or 0)

    @property
    def host(self) -> str:
        return self.text("host")

    @property
    def served(self) -> str:
        """Its pair, with the names of its LoRA adapters: `qwen3-4b (sql, notes)`."""
        names = self.text("adapters").replace(",", ", ")
        return f"{self.text('pair')} ({names})" if names else self.text("pair")

    @property
    def gone(self) -> bool:
        """Whether it has been silent for longer than its lease: others take over its jobs."""
        return self.age > self.number("lease")

    @property
    def state(self) -> str:
        """`working`, `draining`, `drained`, `refusing`, or `gone`."""
        return "gone" if self.gone else self.text("state")

    @property
    def reason(self) -> str:
        return "no heartbeat" if self.gone else self.text("reason")

    @property
    def tokens_per_second(self) -> float:
        return 0.0 if self.gone else self.number("tokens_per_second")

    @property
    def tokens_per_round(self) -> float:
        """Accepted tokens + 1; 0 until it has decoded."""
        return tokens_per_round([self])

    @property
    def power_watts(self) -> float | None:
        """What its machine draws, if that is known or given."""
        return float(watts) if (watts := self.text("power_watts")) else None

    @property
    def watt_hours_per_million(self) -> float | None:
        """Watt-hours per million generated tokens at its present speed."""
        return watt_hours_per_million([self])


def tokens_per_round(reports: Iterable[Report]) -> float:
    """Accepted tokens + 1 over all rounds of these workers; 0 until they have decoded."""
    reports = list(reports)
    rounds = sum(report.number("row_rounds") for report in reports)
    return sum(report.number("accepted") for report in reports) / rounds + 1 if rounds else 0.0


def watt_hours_per_million(reports: Iterable[Report]) -> float | None:
    """Watt-hours per million generated tokens of those workers that generate and whose power is known."""
    known = [(watts, report) for report in reports if (watts := report.power_watts) is not None]
    at_work = [(watts, report.tokens_per_second) for watts, report in known if report.tokens_per_second]
    speed = sum(tokens for _, tokens in at_work)
    return sum(watts for watts, _ in at_work) / speed / 3600 * 1e6 if speed else None


def reports(redis: redis_py.Redis) -> list[Report]:
    """Of each worker the last report, by name; one that vanished is there for a day, or until its machine has another
    worker.
    """
    with redis.pipeline(transaction=False) as pipe:
        pipe.zrange(WORKERS, 0, -1)
        pipe.time()
        names, (seconds, microseconds) = pipe.execute()
        for name in names:
            pipe.hgetall(worker_key(name.decode()))
        found: list[dict[bytes, bytes]] = pipe.execute()
    now = seconds + microseconds / 1e6
    known = []
    for name, raw in zip(names, found, strict=True):
        fields = {key.decode(): value.decode() for key, value in raw.items()}
        if "seen" in fields:
            known.append(Report(name.decode(), max(0.0, now - float(fields["seen"])), fields))
    known.sort(key=lambda report: report.name)
    return [report for report in known if not (report.gone and _has_successor(report, known))]


def served(redis: redis_py.Redis) -> set[str]:
    """The pairs on which live workers work."""
    return {report.text("pair") for report in reports(redis) if not report.gone}


def _has_successor(gone: Report, known: Iterable[Report]) -> bool:
    return any(other.host == gone.host and other.number("started") > gone.number("seen") for other in known)


# What operators ask of the fleet: fields of one hash.


@dataclass(frozen=True)
class Shift:
    """A pair that a machine serves from `start` until `end`, times of its own clock such as 22:00; always if equal."""

    pair: str
    start: str = "00:00"
    end: str = "00:00"

    @property
    def always(self) -> bool:
        return self.start == self.end

    def covers(self, clock: str) -> bool:
        if self.start <= self.end:
            return self.always or self.start <= clock < self.end
        return clock >= self.start or clock < self.end


SHIFTS = TypeAdapter(list[Shift])
"""The pairs of one machine, as they stand in Redis."""


VERSIONED = {"draftmill": "version", "mlx": "mlx", "rq": "rq", "wire": "wire"}
"""What a version can be required of -> its field, both in a worker's report and among the orders."""


@dataclass(frozen=True)
class Orders:
    """What operators ask of one worker: `versions` as in VERSIONED, a `pair` (empty if any will do), to be drained."""

    versions: Mapping[str, str] = field(default_factory=dict)
    pair: str = ""
    drained: bool = False

    @classmethod
    def read(cls, values: Sequence[bytes | None]) -> Orders:
        """The orders in the values of `fields`; raises ValueError if somebody wrote there what makes no sense."""
        mine, everybody, *drains = values[len(VERSIONED) :]
        return cls(_versions(values), pair_now(_shifts(mine or everybody)), any(drains))

    @staticmethod
    def fields(worker: str, host: str) -> list[str]:
        """The fields of the hash that concern a worker, in the order in which `read` takes their values."""
        pairs = [f"pairs {host}", f"pairs {EVERYBODY}"]
        return [*VERSIONED.values(), *pairs, f"drain {worker}", f"drain {host}", f"drain {EVERYBODY}"]


def pair_now(shifts: Iterable[Shift], clock: str | None = None) -> str:
    """The pair to serve at this time of this machine's clock: that of a shift with hours before one without."""
    clock = clock or time.strftime("%H:%M")
    fitting = [shift for shift in shifts if shift.covers(clock)]
    return min(fitting, key=lambda shift: shift.always).pair if fitting else ""


def scheduled_pair(redis: redis_py.Redis, host: str) -> str:
    """The pair that `host` is to serve now, or empty."""
    values: Any = redis.hmget(FLEET, Orders.fields("", host))
    return Orders.read(values).pair


def schedule(redis: redis_py.Redis, host: str) -> list[Shift]:
    raw: Any = redis.hget(FLEET, f"pairs {host}")
    return _shifts(raw)


def set_schedule(redis: redis_py.Redis, host: str, shifts: Sequence[Shift]) -> None:
    if shifts:
        redis.hset(FLEET, f"pairs {host}", SHIFTS.dump_json(list(shifts)).decode())
    else:
        redis.hdel(FLEET, f"pairs {host}")


def _shifts(raw: bytes | None) -> list[Shift]:
    return SHIFTS.validate_json(raw or b"[]")


def require(redis: redis_py.Redis, versions: Mapping[str, str]) -> None:
    """Lets only workers with all of these versions take jobs; what is not among them may be of any version."""
    with redis.pipeline(transaction=True) as pipe:
        pipe.hdel(FLEET, *VERSIONED.values())
        if versions:
            pipe.hset(FLEET, mapping={VERSIONED[name]: version for name, version in versions.items()})
        pipe.execute()


def required(redis: redis_py.Redis) -> dict[str, str]:
    """The versions that workers must have to take jobs, as in VERSIONED."""
    values: Any = redis.hmget(FLEET, list(VERSIONED.values()))
    return _versions(values)


def _versions(values: Sequence[bytes | None]) -> dict[str, str]:
    return {name: value.decode() for name, value in zip(VERSIONED, values, strict=False) if value}


def drain(redis: redis_py.Redis, names: Iterable[str]) -> None:
    """Lets these workers, or the workers of these machines, take nothing new, until `resume`."""
    since = str(time.time())
    redis.hset(FLEET, mapping={f"drain {name}": since for name in names})


def resume(redis: redis_py.Redis, names: Iterable[str]) -> int:
    """Lets them take jobs again; returns how many were drained."""
    count: Any = redis.hdel(FLEET, *(f"drain {name}" for name in names))
    return count


def drained(redis: redis_py.Redis) -> list[str]:
    """The names that are drained: of workers, of machines, or `*`."""
    fields: Any = redis.hkeys(FLEET)
    return sorted(name.decode().removeprefix("drain ") for name in fields if name.startswith(b"drain "))


@dataclass(frozen=True)
class Limit:
    """A user's limit, None without one, and how many jobs of that user run now."""

    user: str
    most: int | None
    running: int


def limit(redis: redis_py.Redis, user: str, most: int) -> None:
    """Let at most so many jobs of a user run at once, 0 for no limit; "*" stands for everybody without one."""
    if most:
        redis.hset(LIMITS, user, str(most))
    else:
        redis.hdel(LIMITS, user)


def limits(redis: redis_py.Redis) -> list[Limit]:
    """Every user who has a limit or jobs that run."""
    most: Any = redis.hgetall(LIMITS)
    active = running(redis)
    return [
        Limit(name.decode(), int(most[name]) if name in most else None, active[name])
        for name in sorted(most.keys() | active.keys())
    ]


def running(redis: redis_py.Redis) -> Counter[bytes]:
    """How many jobs of each user run."""
    queues: Any = redis.hgetall(RUNNING)
    with redis.pipeline(transaction=False) as pipe:
        for queue in queues:
            pipe.zcard(leased_key(queue.decode()))
        counts: list[int] = pipe.execute()
    found = Counter[bytes]()
    for user, count in zip(queues.values(), counts, strict=True):
        found[user] += count
    return +found


@dataclass(frozen=True)
class Spent:
    """Tokens of all lines of a user that workers ended, also of batches that were forgotten.

    `metered_tokens` are those of the generated ones that machines generated whose power is known, and `joules` what
    these drew for the lines; None if there was no such machine.
    """

    user: str
    prompt_tokens: int
    generated_tokens: int
    metered_tokens: int = 0
    joules: float | None = None

    @property
    def watt_hours(self) -> float | None:
        return None if self.joules is None else round(self.joules / 3600, 3)


def spent(redis: redis_py.Redis) -> list[Spent]:
    """What each user had, by name. It is never set back."""
    found: Any = redis.hgetall(SPENT)
    counts = {tuple(field.decode("utf-8", "replace").split(" ", 1)): int(count) for field, count in found.items()}

    def of(user: str) -> Spent:
        prompt, generated, metered = (counts.get((kind, user), 0) for kind in ("prompt", "generated", "metered"))
        millijoules = counts.get(("millijoules", user))
        return Spent(user, prompt, generated, metered, None if millijoules is None else millijoules / 1000)

    return [of(user) for user in sorted({user for _, user in counts})]
