"""Records of files that grow: what a cut tore at a file's end, and what was never written there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..input.dataset import key_of
from ..queue.errors import UserError

FAULTS = ValueError, LookupError, TypeError, AttributeError
"""What reading records raises that were never written."""


def whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, without a last one that has no end."""
    return (raw for raw in file if raw.endswith(b"\n"))


def changed(path: Path, what: str) -> UserError:
    """For a file that holds what was never written to it."""
    return UserError(f"{str(path)!r} was changed since it was written: {what}; mend it, or start over with --force")


def add(keys: set[int], custom_id: str, path: Path, number: int) -> None:
    """Adds the key of line `number` of a file; raises UserError if an earlier line has the same custom_id."""
    key = key_of(custom_id)
    if key in keys:
        raise odd(path, number, custom_id, "stands in an earlier line as well")
    keys.add(key)


def odd(path: Path, number: int, custom_id: str, what: str) -> UserError:
    """For a line that cannot be of this batch, or not there."""
    return UserError(
        f"{str(path)!r} line {number}: custom_id {custom_id!r} {what}; mend it, or start over with --force"
    )
