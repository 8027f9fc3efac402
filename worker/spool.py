"""Finished results on this machine's disk, until Redis has them: a worker that crashed leaves them to the next one.

One file per worker, locked for as long as it lives, one JSON line per outcome. Sending an outcome again is harmless.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import orjson
import redis as redis_py

from ..producer.queue.leases import Claimed, Outcome

log = logging.getLogger("draftmill.worker")


def spool_folder(data: Path, redis: redis_py.Redis) -> Path:
    """Where under the user's data folder the workers of one Redis keep their results."""
    where = redis.connection_pool.connection_kwargs
    server = "|".join(str(where.get(name, "")) for name in ("host", "port", "path", "db"))
    return data / "spool" / hashlib.sha256(server.encode()).hexdigest()[:16]


class Spool:
    """The outcomes that one worker holds. Only its owner may read them: they are completions.

    A disk that is full costs nothing but this safety: the worker says so and goes on.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / f"{worker}.jsonl"
        self._file = open(self.path, "ab", opener=_private)  # noqa: SIM115 -- closed in close()
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._size = 0

    def adopt(self) -> list[Outcome]:
        """What workers left here that live no more; from now on it lies in this worker's file."""
        found: list[Outcome] = []
        for path in sorted(self.folder.glob("*.jsonl")):
            if path == self.path:
                continue
            with path.open("rb") as file:
                if _owned(file):
                    continue
                outcomes = list(_read(file))
                self.add(outcomes)
                path.unlink()
            found += outcomes
        return found

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Write outcomes down before Redis is asked to take them."""
        if not outcomes:
            return
        lines = b"".join(_line(outcome) for outcome in outcomes)
        try:
            self._file.write(lines)
            self._file.flush()
        except OSError as error:
            log.warning("cannot keep %d results in %s: %s", len(outcomes), self.path, error.strerror)
        self._size += len(lines)

    def clear(self) -> None:
        """Redis has them all."""
        if self._size:
            self._file.truncate(0)
            self._size = 0

    def close(self) -> None:
        """Leave the file to the next worker, or nothing if Redis has all."""
        if not self._size:
            self.path.unlink(missing_ok=True)
        self._file.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _owned(file: BinaryIO) -> bool:
    """Whether a living worker holds this file; if not, we hold it from now on."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _line(outcome: Outcome) -> bytes:
    record = {
        "job": outcome.job.id,
        "token": outcome.job.token,
        "status": outcome.status,
        "line": outcome.line.decode(),
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "reason": outcome.reason,
    }
    return orjson.dumps(record) + b"\n"


def _read(file: BinaryIO) -> Iterator[Outcome]:
    for raw in file:
        try:
            record = orjson.loads(raw)
        except orjson.JSONDecodeError:  # torn by the crash: this one is generated again
            continue
        job = Claimed(record.pop("job"), b"", record.pop("token"), "", "", 0)
        yield Outcome(job, line=record.pop("line").encode(), **record)
