"""The error file: failed requests and bad lines, one line of JSON each."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import orjson

from ..input.dataset import BAD_LINE, key_of
from .files import GrowingFile, remove, replacing, size
from .records import FAULTS, changed, whole_lines

MOST_REASON = 200
"""Characters of an error, code and message, in which a reason is looked for; the queue keeps so many."""


class ErrorFile:
    """Grows like OUT. A failure that no longer counts, because its line has a result or failed again since, stays until
    `tidy` writes the file anew; whoever reads the file in between lets the last one count.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed: set[int] = set()
        self.bad_ids: set[str] = set()
        self._untidy = False
        self._file: GrowingFile | None = None

    @property
    def bad(self) -> int:
        """Bad lines that stand in it."""
        return len(self.bad_ids)

    def load(self, done: Set[int]) -> None:
        """Reads what stands there; `done` are the lines that OUT has. Cuts off a torn end."""
        if not size(self.path):
            return
        length = 0
        for raw, line in self._lines():
            length += len(raw)
            self._note(line, done)
        self._file = GrowingFile(self.path)
        self._file.truncate(length)

    def add(self, raw: bytes, line: dict[str, Any]) -> None:
        """Adds a line, raw and parsed, unless it is a bad line that stands there already."""
        if not self._note(line):
            return
        if self._file is None:
            self._file = GrowingFile(self.path)
        self._file.write(raw + b"\n")

    def failed_with(self, code: str) -> set[int]:
        """Of the lines that failed those whose last failure has this code."""
        return {key for key, error in self._last().items() if error["code"] == code}

    def failed_for(self, reason: str) -> set[int]:
        """Those whose last failure has this text in the first characters of its code and message; the case of letters
        makes no difference.
        """
        if not reason:
            return set(self.failed)
        told = {key: f"{error['code']}: {error.get('message')}"[:MOST_REASON] for key, error in self._last().items()}
        return {key for key, text in told.items() if reason.lower() in text.lower()}

    def _last(self) -> dict[int, dict[str, Any]]:
        """The last error of each line that failed."""
        self.flush()
        last = {key_of(line["custom_id"]): line["error"] for _, line in self.failures()}
        return {key: last[key] for key in self.failed}

    def drop(self, key: int) -> None:
        """The failure of a line that has a result now no longer counts."""
        if key in self.failed:
            self.failed.discard(key)
            self._untidy = True

    def keep_bad(self, ids: Set[str]) -> None:
        """Of the bad lines only these count any longer."""
        self._untidy |= not self.bad_ids <= ids
        self.bad_ids &= ids

    def drop_failures(self, reason: str = "") -> None:
        """Failures for a reason, see `failed_for`, no longer count; bad lines stay."""
        for key in self.failed_for(reason):
            self.drop(key)
        self.tidy()

    def tidy(self) -> None:
        """Writes the file anew without the failures that no longer count."""
        if not self._untidy:
            return
        self.close()
        last = {key_of(line["custom_id"]): n for n, line in self.failures()}
        with replacing(self.path) as target:
            for n, (raw, line) in enumerate(self._lines(), 1):
                if _is_bad(line):
                    counts = line["id"] in self.bad_ids
                else:
                    key = key_of(line["custom_id"])
                    counts = key in self.failed and last[key] == n
                if counts:
                    target.write(raw)
        if size(self.path):
            self._file = GrowingFile(self.path)
        else:
            remove(self.path)
        self._untidy = False

    def flush(self) -> None:
        if self._file:
            self._file.flush()

    def sync(self) -> None:
        """Puts what was written on the disk."""
        if self._file:
            self._file.sync()

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def failures(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The lines that are failures, also those that no longer count, with their numbers."""
        if size(self.path):
            yield from ((n, line) for n, (_, line) in enumerate(self._lines(), 1) if not _is_bad(line))

    def _note(self, line: dict[str, Any], done: Set[int] = frozenset()) -> bool:
        """Counts a line; False if it is a bad one that was counted before."""
        if _is_bad(line):
            is_new = line["id"] not in self.bad_ids
            self.bad_ids.add(line["id"])
            return is_new
        key = key_of(line["custom_id"])
        self._untidy |= key in self.failed or key in done
        if key not in done:
            self.failed.add(key)
        return True

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The whole lines of the file, raw and parsed."""
        with self.path.open("rb") as file:
            for number, raw in enumerate(whole_lines(file), 1):
                try:
                    line = orjson.loads(raw)
                    line["id" if _is_bad(line) else "custom_id"].encode()
                except FAULTS:
                    raise changed(self.path, f"record {number} is no result") from None
                yield raw, line


def _is_bad(line: dict[str, Any]) -> bool:
    return line["error"]["code"] == BAD_LINE
