"""Reads files that may be compressed: their first bytes tell, whatever they are called."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from ..queue.errors import UserError

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
PIECE = 2**11
"""Bytes of a zstd file that are decompressed at a time; they may become 30,000 times as many."""


class Damaged(ValueError):
    """A file is not what it begins as."""


def plain(file: BinaryIO) -> BinaryIO:
    """What `file` holds, decompressed, from its start."""
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(GZIP):
        return io.BufferedReader(gzip.GzipFile(fileobj=file), 2**16)
    if magic == ZSTD:
        return io.BufferedReader(_Zstd(file), 2**16)
    return file


@contextmanager
def explain_damage(name: str) -> Iterator[None]:
    """Says in one line that the file called `name` is damaged."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, Damaged) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"{name} is damaged: {reason[:1].lower()}{reason[1:]}; make or fetch it anew") from None


class _Zstd(io.RawIOBase):
    """The frames of a zstd file, one after the other. The package's own reader takes a cut frame for a whole one."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._file = file
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._compressed = b""
        self._content, self._taken = b"", 0
        self._error: type[Exception] = zstandard.ZstdError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._taken == len(self._content):
            data = self._compressed or self._file.read(PIECE)
            if not data and self._frame is not None:
                raise Damaged("its last zstd frame is cut off")
            if not data:
                return 0
            self._content, self._taken = self._decompress(data), 0
        part = memoryview(self._content)[self._taken : self._taken + len(buffer)]
        buffer[: len(part)] = part
        self._taken += len(part)
        return len(part)

    def _decompress(self, data: bytes) -> bytes:
        self._frame = self._frame or self._decompressor.decompressobj()
        try:
            content = self._frame.decompress(data)
        except self._error as error:
            raise Damaged(str(error)) from None
        self._compressed = b""
        if self._frame.eof:
            self._compressed, self._frame = self._frame.unused_data, None
        return content
