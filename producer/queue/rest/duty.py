"""Who feeds: one feeder of a farm at a time, the others stand by."""

from __future__ import annotations

from typing import Any

import redis as redis_py

from .. import wire
from . import stored

DUTY_SECONDS = 10
"""After this long without a sign of life from the feeder on duty another takes over."""


def take(redis: redis_py.Redis, feeder: str) -> bool:
    """Takes the duty, or keeps it; False if another feeder has it. That two have it for a moment harms nothing."""
    holder = on_duty(redis)
    if holder not in ("", feeder):
        return False
    return bool(redis.set(wire.FEEDER, feeder, nx=not holder, xx=bool(holder), ex=DUTY_SECONDS))


def leave(redis: redis_py.Redis, feeder: str) -> None:
    """Lets another feeder take over at once."""
    if on_duty(redis) == feeder:
        redis.set(wire.FEEDER, feeder, px=1)


def on_duty(redis: redis_py.Redis) -> str:
    """The feeder that queues; empty if there is none."""
    found: Any = redis.get(wire.FEEDER)
    return (found or b"").decode("utf-8", "replace")


def unfed(redis: redis_py.Redis, batch: str) -> str:
    """What to do where lines of a batch wait for a feeder and there is none; else empty."""
    waiting = sum(name.lines for name in stored.names(redis, batch))
    if not waiting or on_duty(redis):
        return ""
    return f"{waiting:,} lines wait for a feeder, and none is live; on a machine that stays on: draftmill feed"
