"""Finished results on this machine's disk, until Redis has them: a worker that crashed leaves them to the next one.

One file per worker, locked for as long as it lives, one JSON line per outcome. Sending an outcome again is harmless.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

import orjson
import redis as redis_py

from ..producer.queue.connect import identity
from ..producer.queue.leases import Claimed, Outcome
from ..producer.queue.paths import is_at

log = logging.getLogger("draftmill.worker")

FULL = (errno.ENOSPC, errno.EDQUOT)


def spool_folder(data: Path, redis: redis_py.Redis) -> Path:
    """Where under the user's data folder the workers of one Redis keep their results."""
    return data / "spool" / hashlib.sha256(identity(redis).encode()).hexdigest()[:16]


class Spool:
    """The outcomes that one worker holds. Only its owner may read them: they are completions.

    A disk that is full costs nothing but this safety: the worker says so and goes on.
    Raises OSError if the folder cannot be used for another reason.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        self.folder = folder
        self.path = folder / f"{worker}.jsonl"
        self._file: FileIO | None = None
        self._has_lines = False
        self._adopted: list[tuple[Path, FileIO]] = []
        self._failing = False
        try:
            self._file = self._open()
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._warn(error)

    def adopt(self) -> list[Outcome]:
        """What workers left here that live no more. Their files stay, locked by this worker, until Redis has all."""
        found: list[Outcome] = []
        others: list[Path] = []
        with suppress(FileNotFoundError):  # on a full disk there may be no folder
            others = sorted(path for path in self.folder.glob("*.jsonl") if path != self.path)
        for path in others:
            try:
                file = FileIO(path, "r")
            except FileNotFoundError:  # another worker was here first
                continue
            if not _is_left_over(path, file):
                file.close()
                continue
            lines = file.read().splitlines()
            outcomes = [outcome for line in lines if (outcome := _outcome(line))]
            if unreadable := len(lines) - len(outcomes):
                log.warning("%d results in %s are damaged or of another version; they run again", unreadable, path)
            found += outcomes
            self._adopted.append((path, file))
        return found

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Write outcomes down before Redis is asked to take them."""
        if not outcomes:
            return
        try:
            self._file = self._file or self._open()
            _append(self._file, b"".join(_line(outcome) for outcome in outcomes))
        except OSError as error:
            self._warn(error)
        else:
            self._failing, self._has_lines = False, True

    def clear(self) -> None:
        """Redis has them all. What a full disk does not let us remove is sent once more by the next worker."""
        if self._file and self._has_lines:
            with suppress(OSError):
                self._file.truncate(0)
            self._has_lines = False
        for path, file in self._adopted:
            with suppress(OSError):
                path.unlink()
            file.close()
        self._adopted.clear()

    def close(self) -> None:
        """Leave the files to the next worker, or nothing if Redis has all."""
        if self._file:
            if not self._has_lines:
                with suppress(OSError):
                    self.path.unlink()
            self._file.close()
        for _, file in self._adopted:
            file.close()

    def _open(self) -> FileIO:
        """This worker's file. Until it is locked, another worker may take it for a left-over one, and remove it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            file = FileIO(self.path, "ab", opener=_private)
            fcntl.flock(file, fcntl.LOCK_EX)
            if is_at(self.path, file):
                return file
            file.close()

    def _warn(self, error: OSError) -> None:
        """Said once, until writing works again."""
        if not self._failing:
            log.warning("cannot write to %s: %s; a crash would now lose finished results", self.path, error.strerror)
        self._failing = True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _is_left_over(path: Path, file: FileIO) -> bool:
    """Whether no living worker holds this file; if so, we hold it from now on. Files without a line are removed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if not is_at(path, file):
        return False
    if os.fstat(file.fileno()).st_size == 0:
        with suppress(OSError):
            path.unlink()
        return False
    return True


def _append(file: FileIO, lines: bytes) -> None:
    """Write all of it or, if the disk is full, nothing."""
    size = os.fstat(file.fileno()).st_size
    try:
        while lines:
            lines = lines[file.write(lines) :]
    except OSError:
        file.truncate(size)
        raise


def _line(outcome: Outcome) -> bytes:
    record = {
        "job": outcome.job.id,
        "token": outcome.job.token,
        "status": outcome.status,
        "line": outcome.line.decode(),
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "reason": outcome.reason,
        "joules": outcome.joules,
    }
    return orjson.dumps(record) + b"\n"


def _outcome(line: bytes) -> Outcome | None:
    """The outcome in a line of a file; None if the line was torn by the crash, or is another version's."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    match record:
        case {
            "job": str(id),
            "token": str(token),
            "status": ("done" | "failed" | "cancelled" | "retry" | "returned") as status,
            "line": str(text),
            "prompt_tokens": int(prompt_tokens),
            "completion_tokens": int(completion_tokens),
            "reason": str(reason),
        }:
            job = Claimed(id, b"", token, "", "", 0)
            joules = record.get("joules")  # an earlier version wrote none
            joules = joules if isinstance(joules, float) else None
            return Outcome(job, status, text.encode(), prompt_tokens, completion_tokens, reason, joules)
        case _:
            return None
