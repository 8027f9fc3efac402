"""Schedules in Redis: add, list, remove, and the look by which schedulers share out slots. Keys: `lua/cron.lua`."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
import redis as redis_py
from pydantic import ValidationError
from redis.client import Pipeline

from ..cron.schedule import Schedule, spoken
from .errors import UserError
from .scripts import LUA

CRON, NEXT, BATCH, LAST = "draftmill:cron", "draftmill:cron:next", "draftmill:cron:batch", "draftmill:cron:last"
LOOK = (LUA / "cron.lua").read_text("utf-8")


class Slot(NamedTuple):
    """One slot of a schedule; `at` is Unix milliseconds."""

    schedule: str
    at: int

    @property
    def key(self) -> str:
        return f"{self.schedule}@{self.at}"

    def __str__(self) -> str:
        return f"{self.schedule}@{spoken(self.at)}"

    @classmethod
    def parse(cls, key: bytes) -> Slot:
        schedule, _, at = key.decode().rpartition("@")
        return cls(schedule, int(at))


@dataclass(frozen=True)
class Ended:
    """How a slot ended: the exit code of the last command that ran for it, what that said, and its batch."""

    at: int
    code: int
    said: str
    batch: str = ""


@dataclass(frozen=True)
class Entry:
    """A schedule as Redis has it: its JSON, the first slot that nobody took, and how the last one ended."""

    json: bytes
    schedule: Schedule
    next: int
    last: Ended | None


@dataclass(frozen=True)
class Schedules:
    """All that can be used, `unusable` names with the reason of those that cannot, and Redis's time in ms."""

    now: int
    entries: dict[str, Entry] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Looked:
    """What a look gave: slots taken, each with its batch if it was submitted before, and slots lost to others."""

    taken: dict[Slot, str]
    lost: set[Slot]


def add(redis: redis_py.Redis, schedule: Schedule) -> int:
    """Keeps a checked schedule, to begin with its next slot, which is returned."""
    first = next(schedule.slots(_now(redis.time())))
    json = orjson.dumps(schedule.model_dump(exclude_defaults=True))

    def keep(pipe: Pipeline) -> None:
        if pipe.hexists(CRON, schedule.name):
            remove = f"draftmill cron remove {schedule.name}"
            raise UserError(
                f"there is a schedule {schedule.name!r} already; to replace it: {remove}, then add it again"
            )
        pipe.multi()
        pipe.hset(CRON, mapping={schedule.name: json})
        pipe.zadd(NEXT, {schedule.name: first})

    redis.transaction(keep, CRON)
    return first


def remove(redis: redis_py.Redis, name: str) -> None:
    """Drops a schedule. What was submitted stays; slots that are being submitted are finished."""
    with redis.pipeline(transaction=True) as pipe:
        pipe.hdel(CRON, name)
        pipe.zrem(NEXT, name)
        pipe.hdel(LAST, name)
        if not pipe.execute()[0]:
            raise UserError(f"no schedule {name!r} here; `draftmill cron list` lists them")


def read(redis: redis_py.Redis) -> Schedules:
    """All schedules, by name."""
    with redis.pipeline(transaction=True) as pipe:
        pipe.time()
        pipe.hgetall(CRON)
        pipe.zrange(NEXT, 0, -1, withscores=True)
        pipe.hgetall(LAST)
        time, kept, nexts, lasts = pipe.execute()
    found = Schedules(_now(time))
    first = {name: int(at) for name, at in nexts}
    for name, json in sorted(kept.items()):
        text = name.decode("utf-8", "replace")
        schedule = _parse(text, json)
        if isinstance(schedule, str):
            found.unusable[text] = schedule
            continue
        at = first.get(name) or next(schedule.slots(found.now))
        found.entries[text] = Entry(json, schedule, at, _last(lasts.get(name)))
    return found


def look(
    redis: redis_py.Redis,
    scheduler: str,
    lease: float,
    room: int,
    schedules: Schedules,
    held: Iterable[Slot] = (),
    ended: Mapping[Slot, Ended] | None = None,
) -> Looked:
    """Ends slots, renews the leases of those held, and takes up to `room` that are due or whose scheduler died.

    With a `lease` of 0 seconds all that is held is given up, and anybody may take it.
    """
    ends = [part for slot, how in (ended or {}).items() for part in (slot.key, orjson.dumps(asdict(how)))]
    holds = [slot.key for slot in held]
    due = [entry for entry in schedules.entries.values() if entry.next <= schedules.now] if room else []
    takes: list[Any] = []
    for entry in random.sample(due, len(due)):  # so that none waits behind another's backlog for ever
        slot, after = entry.schedule.due(entry.next, schedules.now)
        key = "" if slot is None else Slot(entry.schedule.name, slot).key
        takes += [entry.schedule.name, entry.json, entry.next, after, key]
    arguments = [int(lease * 1000), room, len(ends) // 2, *ends, len(holds), *holds, len(due), *takes]
    reply: Any = redis.eval(LOOK, 0, scheduler, *arguments)
    lost, taken = ({Slot.parse(key) for key in keys} for keys in reply)
    batches: Any = redis.hmget(BATCH, [slot.key for slot in taken]) if taken else []
    return Looked({slot: (batch or b"").decode() for slot, batch in zip(taken, batches, strict=True)}, lost)


def submitted(redis: redis_py.Redis, slot: Slot, batch: str) -> None:
    """Remembers the batch of a slot whose results are to be written, whoever will do that."""
    redis.hset(BATCH, slot.key, batch)


@lru_cache(maxsize=1000)
def _parse(name: str, json: bytes) -> Schedule | str:
    """A schedule that Redis kept, checked; or why it cannot be used."""
    try:
        schedule = Schedule.model_validate_json(json)
        schedule.check()
    except ValidationError as error:
        return f"it is damaged ({error.errors()[0]['msg']}); remove it and add it again"
    except UserError as error:
        return error.message
    return schedule if schedule.name == name else "it is damaged (its name is another); remove it and add it again"


def _last(json: bytes | None) -> Ended | None:
    try:
        return Ended(**orjson.loads(json)) if json else None
    except (ValueError, TypeError):
        return None


def _now(time: Any) -> int:
    seconds, microseconds = time
    return seconds * 1000 + microseconds // 1000
