"""Writing files so that a cut leaves the old or the new content, and a full disk one clear message."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from ..queue.errors import UserError, explain_file
from ..queue.paths import is_at

BUFFER = 64 * 1024
"""Bytes that may wait to be written."""


class Busy(UserError):
    """Another process has it just now; later it may be free."""


class WriteError(UserError):
    """A file could not be written to its end, and may end in half a line; the last save still stands."""


def real(path: Path) -> Path:
    """The file that `path` leads to; a link is never written over, what it names is."""
    return Path(os.path.realpath(path))


def remove(path: Path) -> None:
    """Removes a file if it is there; a link to it stays."""
    real(path).unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuses an OUT that cannot be written, before any work is done."""
    if path.is_dir():
        raise UserError(f"cannot write {str(path)!r}: it is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {str(path)!r}: not a regular file; name a file")
    folder = real(path).parent if path.is_symlink() else path.parent
    if not folder.is_dir():
        raise UserError(f"cannot write {str(path)!r}: there is no folder {str(folder)!r}; create it")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"cannot write {str(path)!r}: permission denied; choose another place")


def open_locked(path: Path) -> FileIO:
    """Opens for appending, unbuffered; no second process may write the same file."""
    try:
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise UserError(explain_file(error, "cannot write", path)) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"another draftmill is writing {str(path)!r}; wait for it or choose another file") from None
    return file


class GrowingFile:
    """A file that this process alone appends to; it notices if somebody removes, replaces or shortens it meanwhile.

    Raises WriteError for what cannot be written, and where it is no longer written to `path`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_locked(path)
        self._length = os.fstat(self._file.fileno()).st_size
        self._pending = bytearray()

    @property
    def is_empty(self) -> bool:
        return not (self._length or self._pending)

    @property
    def is_there(self) -> bool:
        """Whether `path` still leads to this file."""
        return is_at(self.path, self._file)

    def write(self, content: bytes) -> None:
        self._pending += content
        if len(self._pending) > BUFFER:
            self.flush()

    def flush(self) -> None:
        """Shows what was written to whoever reads the file."""
        self._check()  # nothing is appended to what is no longer whole
        with writing(self.path):
            while self._pending:
                written = self._file.write(self._pending)
                del self._pending[:written]
                self._length += written

    def sync(self) -> None:
        """Puts what was written on the disk; it is at `path` when this returns."""
        self.flush()
        with writing(self.path):
            sync(self._file)
        self._check()

    def truncate(self, length: int) -> None:
        """Cuts off what stands behind the first `length` bytes."""
        with writing(self.path):
            if self._length > length:
                self._file.truncate(length)
        self._length = length

    def close(self) -> None:
        try:
            if self._pending:
                self.flush()
        finally:
            self._file.close()

    def _check(self) -> None:
        if not self.is_there:
            raise removed(self.path)
        if os.fstat(self._file.fileno()).st_size < self._length:
            raise WriteError(
                f"{str(self.path)!r} was cut short while it was written; the same command writes what it lacks"
            )


def removed(path: Path) -> WriteError:
    """For a file that is no longer where it was when it was opened."""
    return WriteError(f"{str(path)!r} was removed or replaced while it was written; the same command writes it anew")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says of writing `path` into one line for the user."""
    try:
        yield
    except OSError as error:
        raise WriteError(explain_file(error, "cannot write", path)) from error


@contextmanager
def replacing(path: Path, named: Path | None = None) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` at the end, once it is on the disk; if that fails, it is removed.

    If `path` is a link, it takes the place of what that leads to. `named` is the file that the user knows, where `path`
    is only a part of it.
    """
    new = beside(path)
    with writing(named or path):
        try:
            with new.open("wb") as file:
                yield file
                sync(file)
            new.replace(real(path))
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def sync(file: BinaryIO | FileIO) -> int:
    """Puts the file on the disk and returns its length."""
    file.flush()
    os.fsync(file.fileno())
    return os.fstat(file.fileno()).st_size


def beside(path: Path) -> Path:
    """Where the new content of `path` is written: in the folder of the file that it is to replace."""
    path = real(path)
    return path.with_name(f"{path.name}.tmp")


def size(path: Path) -> int:
    """Bytes of a file; one that is not there has none."""
    return path.stat().st_size if path.exists() else 0
