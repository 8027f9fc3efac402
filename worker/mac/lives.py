"""What a worker leaves on disk while it lives, so that the next one can say of it how it ended if nobody knows.

One small file per worker, locked for as long as it lives, and removed when it ends in good order. macOS ends a process
by SIGKILL where memory is short (jetsam), which nobody is told of; what the last reading said tells.
"""

from __future__ import annotations

import fcntl
import logging
from contextlib import suppress
from dataclasses import asdict
from io import FileIO
from pathlib import Path

import orjson

from ...producer.queue.paths import is_at
from .memory import MemoryReading

log = logging.getLogger("draftmill.worker")


class LifeFile:
    """The file of one worker. A folder that cannot be written to costs nothing but the story.

    Args:
        folder: of all workers of this user.
        boot: which boot of the machine this is.
    """

    def __init__(self, folder: Path, worker: str, boot: str) -> None:
        self.path = folder / f"{worker}.json"
        self._boot = boot
        self._file: FileIO | None = None
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = FileIO(self.path, "w")
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self.note(MemoryReading())

    def note(self, reading: MemoryReading) -> None:
        """How memory is now."""
        if self._file:
            with suppress(OSError):
                self._file.seek(0)
                self._file.truncate()
                self._file.write(orjson.dumps({"boot": self._boot, **asdict(reading)}))

    def close(self) -> None:
        """The worker ends in good order."""
        if self._file:
            with suppress(OSError):
                self.path.unlink()
            self._file.close()


def look_back(folder: Path, boot: str) -> bool:
    """Say how workers ended that did not say so themselves, once; whether memory was short when one did."""
    short = False
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, LookupError, TypeError), FileIO(path, "r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError while its worker lives
            if not is_at(path, file):
                continue
            path.unlink()
            left = orjson.loads(file.read())
            reading = MemoryReading(left["pressure"], left["swapped"])
            if left["boot"] != boot:
                log.warning("%s ended as its machine did: by a restart or without power", path.stem)
            elif reading.short:
                short = True
                log.warning("%s was killed while memory was short (%s): most likely by macOS", path.stem, reading)
            else:
                log.warning("%s was killed, or crashed (%s)", path.stem, reading)
    return short
