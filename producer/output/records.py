"""Records of files that grow: how a line is known by its custom_id, and what a cut tore at a file's end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..queue.errors import UserError


def key_of(custom_id: str) -> int:
    """64 bits that stand for a custom_id, so that those of a million lines take less than 100 MB.

    That two of a million lines have the same ones happens once in 30 million files.
    """
    return int.from_bytes(hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, without a last one that has no end."""
    return (raw for raw in file if raw.endswith(b"\n"))


def changed(path: Path, what: str) -> UserError:
    """For a file that holds what was never written to it."""
    return UserError(f"{str(path)!r} was changed since it was written: {what}; mend it, or start over with --force")
