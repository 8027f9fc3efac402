"""How lines of a batch end that no worker is to run: cancelled, or because a file has them already."""

from __future__ import annotations

import redis as redis_py

from .errors import denied
from .scripts import run, script

SWEEP = script("cancel")

STRETCH = 1000
"""Jobs that one call ends, so that it never holds Redis up for long."""


def sweep(redis: redis_py.Redis, batch: str) -> int:
    """Ends the lines of a cancelled batch that nobody runs, and returns how many. Does nothing to another batch."""
    total, place = 0, b"0"
    while True:
        ended, place = run(redis, SWEEP, batch, place, STRETCH)
        total += ended
        if place == b"0":
            return total


def sweep_if_allowed(redis: redis_py.Redis, batch: str) -> bool:
    """Does what `sweep` does, for those who wait for its end; False if this user may not: then workers do it."""
    try:
        sweep(redis, batch)
    except redis_py.ResponseError as error:
        if not denied(error):
            raise
        return False
    return True
