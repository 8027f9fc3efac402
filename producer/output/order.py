"""The line numbers of what OUT has, until OUT is complete: Redis forgets them with each result that is on the disk."""

from __future__ import annotations

import os
from pathlib import Path
from struct import Struct
from typing import BinaryIO

from .files import size, sync, writing

RECORD = Struct("<QI")
"""The key of a custom_id and a line number."""


class Order:
    """A file beside `out` of such records, written before OUT's own."""

    def __init__(self, path: Path, out: Path) -> None:
        self.path, self._out = path, out
        self._file: BinaryIO | None = None

    def add(self, key: int, number: int) -> None:
        with writing(self._out):
            if self._file is None:
                self._file = self.path.open("ab")
                os.truncate(self.path, self._file.tell() // RECORD.size * RECORD.size)
            self._file.write(RECORD.pack(key, number))

    def flush(self) -> None:
        if self._file:
            with writing(self._out):
                self._file.flush()

    def sync(self) -> None:
        if self._file:
            with writing(self._out):
                sync(self._file)

    def numbers(self) -> dict[int, int]:
        """The line number of each key."""
        self.flush()
        if not size(self.path):
            return {}
        raw = self.path.read_bytes()
        return dict(RECORD.iter_unpack(raw[: len(raw) // RECORD.size * RECORD.size]))

    def close(self) -> None:
        if self._file:
            with writing(self._out):
                self._file.close()
            self._file = None

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
