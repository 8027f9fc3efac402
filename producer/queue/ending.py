"""How lines of a batch end that no worker is to run: cancelled, bad, taken by RQ's tools, or in a file already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import redis as redis_py

from . import wire
from .errors import denied
from .scripts import run, script

SWEEP, DROP, REPAIR = script("cancel"), script("drop"), script("repair")

CANCELLED = "batch_cancelled"
"""Error code of lines that ended because their batch was cancelled."""

STRETCH, SHORT_STRETCH = 1000, 200
"""Jobs that one call ends, so that it never holds Redis up for long; fewer if it looks for each in the queue."""

MOST_COMPARED = 200_000
"""Entries of a queue with which one call compares jobs."""


class Open(NamedTuple):
    """A job without an outcome, its line's number and custom_id."""

    job: str
    n: int
    custom_id: str


def sweep(redis: redis_py.Redis, batch: str) -> int | None:
    """Ends the lines of a cancelled batch that nobody runs, and returns how many. Does nothing to another batch.

    None if this Redis user may not end lines: then workers do it.
    """
    total, place = 0, b"0"
    try:
        while True:
            ended, place = run(redis, SWEEP, batch, place, STRETCH)
            total += ended
            if place == b"0":
                return total
    except redis_py.ResponseError as error:
        if not denied(error):
            raise
        return None


def repair(redis: redis_py.Redis, batch: str) -> tuple[int, int]:
    """Goes through the open jobs of a batch of which not all are to be found: queues again those that only their queue
    has lost, ends those that RQ's tools cancelled or deleted, and returns how many of each.

    What it reads may change meanwhile; the script looks again, at some jobs in each call.
    """
    names: Any = redis.hget(wire.batch_key(batch), "queue")
    queued: set[bytes] = set()
    for name in (names or b"").split():
        place, page = 0, True
        while page:
            page: Any = redis.lrange(b"rq:queue:" + name, place, place + STRETCH - 1)
            queued.update(page)
            place += STRETCH
    lost = [job for job, _ in redis.hscan_iter(wire.open_key(batch), count=STRETCH) if job not in queued]
    size = max(1, min(SHORT_STRETCH, MOST_COMPARED // (len(queued) + 1)))
    requeued = taken = 0
    for first in range(0, len(lost), size):
        more_requeued, more_taken, missing = run(redis, REPAIR, batch, *lost[first : first + size])
        requeued, taken = requeued + more_requeued, taken + more_taken
        if missing <= 0:
            break
    redis.hdel(wire.batch_key(batch), "repairing")
    return requeued, taken


def open_jobs(redis: redis_py.Redis, batch: str) -> Iterator[Open]:
    """The jobs of a batch without an outcome: a window of its lines."""
    for job, about in redis.hscan_iter(wire.open_key(batch), count=STRETCH):
        n, _, custom_id = about.partition(b" ")
        yield Open(job.decode(), int(n), custom_id.decode("utf-8", "surrogatepass"))


def drop(redis: redis_py.Redis, batch: str, jobs: Iterable[tuple[Open, bool]], is_last: bool = False) -> None:
    """Ends queued jobs whose lines a file has, as if their results had been acknowledged; those that run go on.

    With each job goes whether the file has a failure. With `is_last` the file has all lines, and the batch no longer
    waits for those that were not submitted here. Repeating is harmless.
    """
    in_order = sorted(jobs, key=lambda pair: pair[0].n)  # about that of the queue: each is found sooner
    for first in range(0, len(in_order) or 1, SHORT_STRETCH):
        some = in_order[first : first + SHORT_STRETCH]
        outcomes = [part for job, failed in some for part in (job.job, "failed" if failed else "done")]
        run(redis, DROP, batch, int(is_last), *outcomes)


def add_bad(redis: redis_py.Redis, batch: str, lines: Sequence[bytes]) -> None:
    """Keeps the error lines of lines that cannot run with the batch, in place of those that it had."""
    key = wire.bad_key(batch)
    left: Any = redis.ttl(wire.batch_key(batch))
    with redis.pipeline(transaction=True) as pipe:
        pipe.delete(key)
        for first in range(0, len(lines), STRETCH):
            pipe.rpush(key, *lines[first : first + STRETCH])
        if left > 0:
            pipe.expire(key, left)
        pipe.execute()


def bad_lines(redis: redis_py.Redis, batch: str) -> Iterator[bytes]:
    """What `add_bad` kept, in its order."""
    first, page = 0, True
    while page:
        page: Any = redis.lrange(wire.bad_key(batch), first, first + STRETCH - 1)
        yield from page
        first += STRETCH
