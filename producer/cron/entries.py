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


@dataclass(frozen=True)
class Entry:
    """A schedule that can be used, its JSON in Redis, the first slot that nobody took, and how the last one ended."""

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

    @property
    def due(self) -> list[Due]:
        """Those with a slot that has come, and what is to run."""
        found: list[Due] = []
        for name, entry in self.entries.items():
            if entry.next <= self.now:
                slot, after = entry.schedule.due(entry.next, self.now)
                found.append(Due(name, entry.json, entry.next, after, slot))
        return found


def add(redis: redis_py.Redis, schedule: Schedule) -> int:
    """Keeps a checked schedule, to begin with its next slot, which is returned."""
    first = next(schedule.slots(store.now(redis)))
    store.add(redis, schedule.name, orjson.dumps(schedule.model_dump(exclude_defaults=True)), first)
    return first


def read(redis: redis_py.Redis, check: Check) -> Schedules:
    """All schedules, by name; `check` is for their arguments."""
    now, kept = store.read(redis)
    found = Schedules(now)
    for name, own in kept.items():
        schedule = _parse(name, own.json, check)
        if isinstance(schedule, str):
            found.unusable[name] = schedule
        else:
            found.entries[name] = Entry(own.json, schedule, own.next or next(schedule.slots(now)), own.last)
    return found


@lru_cache(maxsize=1000)
def _parse(name: str, json: bytes, check: Check) -> Schedule | str:
    """A schedule that Redis kept, checked; or why it cannot be used."""
    try:
        schedule = Schedule.model_validate_json(json)
        schedule.check(check)
    except ValidationError as error:
        return f"it is damaged ({error.errors()[0]['msg']}); remove it and add it again"
    except UserError as error:
        return error.message
    return schedule if schedule.name == name else "it is damaged (its name is another); remove it and add it again"
