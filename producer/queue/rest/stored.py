"""The rest of a batch: chunks of lines that lie in Redis, compressed, until a feeder queues them.

A submitter that is to leave puts them there; they need no file that the feeder could read. Queuing a chunk twice queues
nothing twice, so a feeder may die at any moment, and several may work on one batch.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson
import redis as redis_py

from .. import wire
from ..errors import UserError
from ..scripts import run, script

KEEP, FED = script("rest/keep"), script("rest/fed")

MOST_BYTES = 2**30
"""Bytes that the chunks of all batches may take where Redis has no `maxmemory`."""
SHARE = 4
"""Where it has one, they may take this part of it: one in so many."""

MOST_UNPACKED = 4 * wire.MOST_BODY_BYTES
"""Bytes of a chunk as JSON; it ends with the line that makes it larger than a few megabytes."""

NAME = re.compile(rb"\d{1,9} [1-9]\d{0,8}")
"""How Redis has the name of a chunk."""

Became = Literal["kept", "known", "full", "gone"]
"""What became of a chunk: it is kept, or no line of it is still to be queued, or there is no room, or its batch was
cancelled or is not there.
"""


class Name(NamedTuple):
    """A chunk of a batch: its number in the dataset, and how many lines it has."""

    number: int
    lines: int

    @property
    def field(self) -> bytes:
        return b"%d %d" % self


class Kept(NamedTuple):
    """What became of a chunk, and how many of its lines are queued or run already."""

    became: Became
    queued: int


class Lines(NamedTuple):
    """What a chunk holds: the jobs of its lines, whether those that failed for a `reason` are to run again, and its
    bytes as JSON.
    """

    bodies: Sequence[wire.JobBody]
    retry_failed: bool
    reason: str
    size: int


@dataclass(frozen=True)
class Stored:
    """A chunk as Redis has it."""

    name: Name
    chunk: bytes

    @property
    def digest(self) -> str:
        """Tells it from another chunk with the same name."""
        return hashlib.sha1(self.chunk, usedforsecurity=False).hexdigest()

    def open(self) -> Lines:
        """Raises UserError if it holds no lines: whoever may write to Redis could have put anything there."""
        try:
            raw = zlib.decompressobj().decompress(self.chunk, MOST_UNPACKED)
            found = orjson.loads(raw)
            bodies = [wire.JobBody.model_validate(row) for row in found["lines"]]
            return Lines(bodies, found["retry_failed"] is True, str(found["reason"]), len(raw))
        except (ValueError, TypeError, KeyError, zlib.error):
            raise UserError(f"chunk {self.name.number} is damaged; submit the file again") from None


def most_bytes(redis: redis_py.Redis) -> int:
    """How much the chunks of all batches may take."""
    info: Any = redis.info("memory")
    return int(info.get("maxmemory") or 0) // SHARE or MOST_BYTES


def keep(
    redis: redis_py.Redis,
    batch: str,
    number: int,
    bodies: Sequence[wire.JobBody],
    most: int,
    retry_failed: bool = False,
    reason: str = "",
) -> Kept:
    """Leaves a chunk of a batch to a feeder, if all of them have at most `most` bytes. Repeating is harmless."""
    rows = [body.model_dump(mode="json", exclude_defaults=True) for body in bodies]
    chunk = zlib.compress(orjson.dumps({"retry_failed": retry_failed, "reason": reason, "lines": rows}))
    lines = [part for body in bodies for part in (wire.job_id(batch, body.custom_id), body.line)]
    field = Name(number, len(bodies)).field
    became, queued = run(redis, KEEP, batch, field, chunk, int(retry_failed), reason, most, *lines)
    return Kept(became.decode(), queued)


def batches(redis: redis_py.Redis) -> list[str]:
    """Those of which a feeder is to queue lines, the smallest rest first."""
    found: Any = redis.zrange(wire.RESTS, 0, -1)
    return [batch.decode() for batch in found]


def names(redis: redis_py.Redis, batch: str) -> list[Name]:
    """The chunks of a batch that nobody has queued, in the order of its dataset."""
    fields: Any = redis.hkeys(wire.rest_key(batch))
    return sorted(Name(*map(int, field.split())) for field in fields if NAME.fullmatch(field))


def read(redis: redis_py.Redis, batch: str, name: Name) -> Stored | None:
    """A chunk of a batch; None if it is no longer there."""
    chunk: Any = redis.hget(wire.rest_key(batch), name.field.decode())
    return None if chunk is None else Stored(name, chunk)


def fed(redis: redis_py.Redis, batch: str, chunk: Stored) -> None:
    """Drops a chunk whose lines are queued."""
    run(redis, FED, batch, chunk.name.field, chunk.digest)


def tidy(redis: redis_py.Redis, batch: str) -> None:
    """Drops what is left of a batch that takes no lines any more."""
    run(redis, FED, batch, "", "")
