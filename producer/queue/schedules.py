"""Schedules in Redis: add, list, remove, and the look by which schedulers share out slots. Keys: `lua/cron.lua`."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import orjson
import redis as redis_py
from redis.client import Pipeline

from . import errors
from .errors import UserError
from .scripts import call, lone_script

CRON, NEXT, BATCH, LAST = "draftmill:cron", "draftmill:cron:next", "draftmill:cron:batch", "draftmill:cron:last"
LOOK = lone_script("cron")


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
    """How a slot ended. `code` is what a command would end with; `said` tells in one line what became of it, or why it
    failed.

    `done` and `failed` count the lines of OUT, `bad` the lines that could not be run.
    """

    at: int
    code: int
    said: str
    batch: str = ""
    done: int = 0
    failed: int = 0
    bad: int = 0

    @property
    def outcome(self) -> Literal["done", "partial", "failed"]:
        """`partial` if some lines are bad or have failed, and all others are done."""
        match self.code:
            case errors.DONE:
                return "done"
            case errors.FAILED_ITEMS:
                return "partial"
            case _:
                return "failed"


@dataclass(frozen=True)
class Kept:
    """A schedule as Redis has it: its JSON, the first slot that nobody took, if any was set, and how the last ended."""

    json: bytes
    next: float | None
    last: Ended | None


class Due(NamedTuple):
    """A schedule whose `next` slot is due: which slot is to run, if any does, and the one after it."""

    schedule: str
    json: bytes
    next: int
    after: int
    slot: int | None


@dataclass(frozen=True)
class Looked:
    """What a look gave: slots taken, each with its batch if it was submitted before, and slots lost to others."""

    taken: dict[Slot, str]
    lost: set[Slot]


def now(redis: redis_py.Redis) -> int:
    """Redis's time in milliseconds."""
    return _milliseconds(redis.time())


def add(redis: redis_py.Redis, name: str, json: bytes, first: int) -> None:
    """Keeps a schedule, to begin with the slot `first`."""

    def keep(pipe: Pipeline) -> None:
        if pipe.hexists(CRON, name):
            remove = f"draftmill cron remove {name}"
            raise UserError(f"there is a schedule {name!r} already; to replace it: {remove}, then add it again")
        pipe.multi()
        pipe.hset(CRON, mapping={name: json})
        pipe.zadd(NEXT, {name: first})

    redis.transaction(keep, CRON)


def remove(redis: redis_py.Redis, name: str) -> None:
    """Drops a schedule. What was submitted stays; slots that are being submitted are finished."""
    with redis.pipeline(transaction=True) as pipe:
        pipe.hdel(CRON, name)
        pipe.zrem(NEXT, name)
        pipe.hdel(LAST, name)
        if not pipe.execute()[0]:
            raise UserError(f"no schedule {name!r} here; `draftmill cron list` lists them")


def read(redis: redis_py.Redis) -> tuple[int, dict[str, Kept]]:
    """Redis's time in milliseconds, and all schedules by name."""
    with redis.pipeline(transaction=True) as pipe:
        pipe.time()
        pipe.hgetall(CRON)
        pipe.zrange(NEXT, 0, -1, withscores=True)
        pipe.hgetall(LAST)
        time, kept, nexts, lasts = pipe.execute()
    first = dict(nexts)
    return _milliseconds(time), {
        name.decode("utf-8", "replace"): Kept(json, first.get(name), _last(lasts.get(name)))
        for name, json in sorted(kept.items())
    }


def look(
    redis: redis_py.Redis,
    scheduler: str,
    lease: float,
    room: int,
    due: Sequence[Due] = (),
    held: Iterable[Slot] = (),
    ended: Mapping[Slot, Ended] | None = None,
) -> Looked:
    """Ends slots, renews the leases of those held, and takes up to `room` that are due or whose scheduler died.

    With a `lease` of 0 seconds all that is held is given up, and anybody may take it.
    """
    ends = [part for slot, how in (ended or {}).items() for part in (slot.key, orjson.dumps(asdict(how)))]
    holds = [slot.key for slot in held]
    takes: list[Any] = []
    for name, json, next, after, slot in random.sample(due, len(due)):  # so that none waits behind another's backlog
        takes += [name, json, next, after, "" if slot is None else Slot(name, slot).key]
    arguments = [int(lease * 1000), room, len(ends) // 2, *ends, len(holds), *holds, len(due), *takes]
    reply: Any = call(redis, LOOK, scheduler, *arguments)
    lost, taken = ({Slot.parse(key) for key in keys} for keys in reply)
    batches: Any = redis.hmget(BATCH, [slot.key for slot in taken]) if taken else []
    return Looked({slot: (batch or b"").decode() for slot, batch in zip(taken, batches, strict=True)}, lost)


def submitted(redis: redis_py.Redis, slot: Slot, batch: str) -> None:
    """Remembers the batch of a slot whose results are to be written, whoever will do that."""
    redis.hset(BATCH, slot.key, batch)


def spoken(slot: int) -> str:
    """A slot as text: UTC, with fractions of a second only if it has some."""
    when = datetime.fromtimestamp(slot / 1000, UTC)
    return when.isoformat(timespec="milliseconds" if slot % 1000 else "seconds").replace("+00:00", "Z")


def _last(json: bytes | None) -> Ended | None:
    try:
        return Ended(**orjson.loads(json)) if json else None
    except (ValueError, TypeError):
        return None


def _milliseconds(time: Any) -> int:
    seconds, microseconds = time
    return seconds * 1000 + microseconds // 1000
