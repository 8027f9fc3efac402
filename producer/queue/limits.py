"""How many jobs of one user may run at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis as redis_py

from .wire import LIMITS, USERS, user_running_key


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
    active: Any = redis.smembers(USERS)
    names = sorted(most.keys() | active)
    with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.scard(user_running_key(name.decode()))
        running = pipe.execute()
    return [
        Limit(name.decode(), int(most[name]) if name in most else None, count)
        for name, count in zip(names, running, strict=True)
    ]
