"""The schedules of one Redis, read and checked: which can run, when each does next, and what is due."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import orjson
import redis as redis_py
from pydantic import ValidationError

from ..queue import schedules as store
from ..queue.errors import UserError
from ..queue.schedules import Due, Ended
from .schedule import Check, Schedule

ANEW = "remove it and add it again"


@dataclass(frozen=True)
class Entry:
    """A schedule that can be used, its JSON in Redis, the first slot that nobody took, and how the last one ended."""

    json: bytes
    schedule: Schedule
    next: int
    last: Ended | None


@dataclass(frozen=True)
class Schedules:
    """All that can be used, those of them with a slot that has come, names of those that cannot be used with the
    reason, and Redis's time in ms.
    """

    now: int
    entries: dict[str, Entry] = field(default_factory=dict)
    due: list[Due] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)


def add(redis: redis_py.Redis, schedule: Schedule) -> int:
    """Keeps a checked schedule, to begin with its next slot, which is returned."""
    first = next(schedule.slots(store.now(redis)))
    store.add(redis, schedule.name, orjson.dumps(schedule.model_dump(exclude_defaults=True)), first)
    return first


def read(redis: redis_py.Redis, check: Check, out_urls: tuple[str, ...] | None = None) -> Schedules:
    """All schedules, by name; `check` is for their arguments, `out_urls` are those below which OUT may be."""
    now, kept = store.read(redis)
    found = Schedules(now)
    for name, own in kept.items():
        schedule = _parse(name, own.json, check, out_urls)
        if isinstance(schedule, str):
            found.unusable[name] = schedule
            continue
        try:
            first = int(own.next or next(schedule.slots(now)))
            schedule.local(first)
            slot, after = schedule.due(first, now) if first <= now else (None, first)
        except (ValueError, ArithmeticError, OSError) as error:  # there is no such time
            found.unusable[name] = f"its next slot is damaged ({error}); {ANEW}"
            continue
        found.entries[name] = Entry(own.json, schedule, first, own.last)
        if first <= now:
            found.due.append(Due(name, own.json, first, after, slot))
    return found


@lru_cache(maxsize=1000)
def _parse(name: str, json: bytes, check: Check, out_urls: tuple[str, ...] | None) -> Schedule | str:
    """A schedule that Redis kept, checked; or why it cannot be used."""
    try:
        schedule = Schedule.model_validate_json(json)
        schedule.check(check, out_urls)
    except ValidationError as error:
        return f"it is damaged ({error.errors()[0]['msg']}); {ANEW}"
    except UserError as error:
        return error.message
    return schedule if schedule.name == name else f"it is damaged (its name is another); {ANEW}"
