"""Orders about a batch that is in the queue: pause it, let it go on, give it another priority."""

from __future__ import annotations

import redis as redis_py

from ..scripts import run, script

STEER = script("orders/steer")


def pause(redis: redis_py.Redis, batch: str) -> bool:
    """Lets workers take no more lines of a batch; those that run finish. False if nothing of it is to be run."""
    return bool(run(redis, STEER, batch, "pause", ""))


def resume(redis: redis_py.Redis, batch: str) -> bool:
    """Lets them take lines again; the same for a batch that was not paused."""
    return bool(run(redis, STEER, batch, "resume", ""))


def prioritize(redis: redis_py.Redis, batch: str, priority: str) -> bool:
    """Gives all lines of a batch that do not run yet another priority, one of `wire.PRIORITIES`."""
    return bool(run(redis, STEER, batch, "priority", priority))
