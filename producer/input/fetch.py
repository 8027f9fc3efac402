"""Fetches a dataset from its URL into the cache folder, once for each version of it, and goes on where it was cut."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..queue.errors import AGAIN, UserError, explain_file
from ..queue.paths import cache_dir
from . import remote
from .remote import Answer, Cut, Held

KEPT_SECONDS = 14 * 86400
"""A copy that nobody used for so long is removed when another one is fetched."""
SPARE = 256 * 2**20
"""Bytes that stay free on the disk."""
TRIES = 5
"""After so many cuts in a row that brought nothing new, it ends."""

Tell = Callable[[str], object]


def fetch(url: str, tell: Tell) -> BinaryIO:
    """Opens the copy of what the URL has now. `tell` hears again and again how far it is.

    Raises UserError if it cannot be had; what came of it stays for the next time.
    """
    name = remote.name_of(url)
    folder = cache_dir() / "inputs" / hashlib.sha256(remote.identity(url).encode()).hexdigest()[:32]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.parent.chmod(0o700)  # what only its user may read stays so
        folder.mkdir(exist_ok=True)
        _remove_old(folder.parent)
        with _alone(folder, name, tell):
            copy = Copy(folder, name, tell)
            _fetch(url, copy, tell)
            return copy.open()
    except OSError as error:
        raise UserError(explain_file(error, "cannot write", error.filename or folder)) from error


def _fetch(url: str, copy: Copy, tell: Tell) -> None:
    """Takes what the copy lacks, over as many connections as that needs."""
    failures, most, was_answered = 0, 0, False
    while True:
        try:
            answer = remote.ask(url, copy.held)
            was_answered = True
            if answer:
                copy.take(answer)
            return
        except Cut as cut:
            if not was_answered and not isinstance(cut, remote.Busy):
                raise UserError(f"cannot read {copy.name}: {cut}") from None
            failures = 0 if copy.held.size > most else failures + 1
            most = max(most, copy.held.size)
            if failures == TRIES:
                how_far = f"{copy.name} came no further than {_mb(most)}" if most else f"cannot read {copy.name}"
                raise UserError(f"{how_far}: {cut}; {AGAIN}") from None
            tell(f"waiting for {copy.name}: {cut}")
            time.sleep(2**failures)


class Copy:
    """The files of a URL's copy: `whole`, or `part` while it is not, and `version`, which says of what."""

    def __init__(self, folder: Path, name: str, tell: Tell) -> None:
        self.name = name
        self._folder, self._tell = folder, tell
        self._whole, self._part, self._version = folder / "whole", folder / "part", folder / "version"

    @property
    def held(self) -> Held:
        version = self._version.read_text("utf-8") if self._version.exists() else ""
        is_whole = self._whole.exists()
        file = self._whole if is_whole else self._part
        return Held(version, file.stat().st_size if file.exists() else 0, is_whole)

    def take(self, answer: Answer) -> None:
        """Adds what comes; the copy is whole afterwards. Raises Cut if less came."""
        if answer.start == 0:
            self._begin(answer.version)
        self._check_room((answer.size or 0) - answer.start)
        have, total = answer.start, "" if answer.size is None else f" of {_mb(answer.size)}"
        with self._part.open("ab") as file:
            for piece in answer.pieces:
                self._check_room(len(piece))
                file.write(piece)
                have += len(piece)
                self._tell(f"fetching {self.name}: {_mb(have)}{total}")
            file.flush()
            os.fsync(file.fileno())
        if answer.size not in (None, have):
            raise Cut("the connection was cut")
        self._part.replace(self._whole)

    def open(self) -> BinaryIO:
        """The whole copy; it was used now."""
        for path in (self._whole, self._version):
            os.utime(path)
        return self._whole.open("rb")

    def _begin(self, version: str) -> None:
        """Lets go of another version. What is cut here has no bytes of which the version is unknown."""
        self._whole.unlink(missing_ok=True)
        self._part.write_bytes(b"")
        self._version.write_text(version, "utf-8")

    def _check_room(self, needed: int) -> None:
        if needed + SPARE > shutil.disk_usage(self._folder).free:
            raise UserError(
                f"the disk of {str(self._folder.parent)!r} has too little room for {self.name} ({_mb(SPARE)} of it "
                "stay free); make room, or set DRAFTMILL_CACHE to a folder on another disk"
            )


@contextmanager
def _alone(folder: Path, name: str, tell: Tell) -> Iterator[None]:
    """Waits until no other process fetches the same URL."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                tell(f"waiting for another draftmill that fetches {name}")
                time.sleep(0.5)
        yield
    finally:
        os.close(lock)


def _remove_old(folder: Path) -> None:
    """Removes what nobody used for long. Who reads it just now reads on: the file stays until it is closed."""
    before = time.time() - KEPT_SECONDS
    for path in folder.glob("*/*"):
        try:
            if path.stat().st_mtime < before:
                path.unlink()
        except FileNotFoundError:  # another process removes it, too
            continue


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
