"""The results file: written so that a cut at any moment, and any number of repetitions, leave each line once.

Beside OUT lies a manifest, `OUT.draftmill.json`: which batch OUT holds, how far the batch's result stream was
read, and how long OUT and the error file were then. What lies past those lengths was written after the last
save; it is cut away before writing goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ..input.dataset import BadLine
from ..queue.batches import Result
from ..queue.errors import UserError
from .earlier import adopt_errors
from .files import WriteError, beside, open_locked, real, remove, replacing, size, sync, writing
from .formats import format_of
from .manifest import Manifest, difference

SAVE_SECONDS = 2.0
"""How much copying of results an interruption may have to repeat."""
CHUNK = 500
"""Lines of the error file that are looked at together."""


def errors_of(out: Path) -> Path:
    """The error file of OUT, which has OUT's whole name in its own, so that no two outputs share one."""
    return out.with_name(f"{out.name}.errors.jsonl")


class Output:
    """OUT, its error file `OUT.errors.jsonl` and its manifest, for one batch; a context manager.

    A Parquet file is written when the batch is complete; until then its rows are in `OUT.partial.jsonl`. If OUT is a
    link, the file that it leads to is written; what lies beside OUT lies beside the link. `source` and
    `parameters` tell what the batch is of, for the day when OUT is named for another one.
    """

    def __init__(
        self,
        path: Path,
        batch: str,
        force: bool = False,
        source: str = "",
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.errors_path = errors_of(path)
        self._format = format_of(path)
        if self._format.packed:
            from . import parquet  # says at once that its package is missing

            self._parquet = parquet
        self._stream_path = path.with_name(f"{path.name}.partial.jsonl") if self._format.packed else path
        self._manifest_path = path.with_name(f"{path.name}.draftmill.json")
        self._out = open_locked(self._stream_path)
        self._errors: BinaryIO | None = None
        self._halfway = False
        self._saved = time.monotonic()
        try:
            self.manifest = self._found(Manifest(batch, source, dict(parameters or {})), force)
        except UserError:
            self._out.close()
            if self._format.packed and not size(self._stream_path):
                self._stream_path.unlink()
            raise
        self._cut()
        self.save()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not WriteError and not self._halfway:
                self.save()
        finally:
            for file in filter(None, (self._out, self._errors)):
                with suppress(OSError):  # a full disk has been reported before
                    file.close()
        if self.manifest.untouched:
            self._manifest_path.unlink(missing_ok=True)
        if self.manifest.untouched or (self._format.packed and self.manifest.complete):
            self._stream_path.unlink(missing_ok=True)

    @property
    def holder(self) -> Path:
        """The file that has the results now: OUT, or what it will be made of."""
        return self.path if self.manifest.complete else self._stream_path

    def write(self, result: Result) -> None:
        """Adds one result to OUT, or to the error file if it is an error.

        Interrupted between the file and the manifest, both are left as they were at the last save.
        """
        self._halfway = True
        line = orjson.loads(result.line)
        if line.get("error") is None:
            record = self._format.record(result.line, line, self._columns(line.get("keep") or {}))
            with writing(self._stream_path):
                self._out.write(record)
            self.manifest.done += 1
        else:
            self._error(result.line)
            self.manifest.failed += 1
        self.manifest.after = result.entry
        self._halfway = False

    def write_bad(self, line: BadLine) -> None:
        """Adds a line that could not be submitted to the error file."""
        self._halfway = True
        self._error(orjson.dumps(line.record()))
        self.manifest.bad += 1
        self._halfway = False

    def flush(self) -> None:
        """Shows what was written to whoever reads the files (`tail -f`)."""
        with writing(self._stream_path):
            self._out.flush()
            if self._errors:
                self._errors.flush()

    def save_sometimes(self) -> None:
        """Saves if the last time is long enough ago."""
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Puts what was written on the disk, then says so in the manifest."""
        with writing(self._stream_path):
            self.manifest.out_bytes = sync(self._out)
            if self._errors:
                self.manifest.errors_bytes = sync(self._errors)
        self._save_manifest()
        self._saved = time.monotonic()

    def complete(self) -> None:
        """OUT has a result for each line: makes it what its format wants, and says so in the manifest."""
        self._columns(())
        self.save()
        if self._format.packed:
            with self._stream_path.open("rb") as rows, replacing(self.path) as target:
                self._parquet.pack(rows, target)
        self.manifest.complete = True
        self.manifest.complete_to = self.manifest.after
        self.save()

    def start_over(self) -> None:
        """Forgets all that was written."""
        self.manifest = self.manifest.fresh()
        self._cut()

    def take_back(self, retries: int, stands: Callable[[Sequence[dict[str, Any]]], Sequence[bool]]) -> None:
        """Goes on after failures were queued again: leaves in the error file those that still stand.

        `stands` is asked about some lines of the error file at a time, none of them a bad line. An OUT that was
        complete no longer is.
        """
        if self.manifest.complete:
            if size(self.errors_path) < self.manifest.errors_bytes:
                raise UserError(f"{str(self.errors_path)!r} was changed since it was written; start over with --force")
            self._unpack()
            self.manifest.complete = self.manifest.in_order = False
            self._cut()
        self.save()
        self._close_errors()
        if self.manifest.errors_bytes:
            self.manifest.failed, self.manifest.errors_bytes = self._write_standing(stands)
            self.manifest.swapping = True
        self.manifest.retries = retries
        self._save_manifest()
        if self.manifest.swapping:
            self._swap(self.manifest)
            self._save_manifest()
            self._cut()

    def sort(self, numbers: dict[str, int]) -> None:
        """Puts the results in the order of the line numbers that `numbers` gives for each custom_id.

        A Parquet file has that order from the next call of `complete`.
        """
        if self.manifest.complete:
            self._unpack()
        self.save()
        places: list[tuple[int, int, int]] = []
        with self._stream_path.open("rb") as source, replacing(self._stream_path) as target:
            offset = 0
            for custom_id, record in self._format.records(source):
                places.append((-1 if custom_id is None else numbers[custom_id], offset, len(record)))
                offset += len(record)
            for _, start, length in sorted(places):
                source.seek(start)
                target.write(source.read(length))
        self._out.close()
        self._out = open_locked(self._stream_path)
        self.manifest.in_order = True

    def _columns(self, keep: Sequence[str] | Mapping[str, Any]) -> list[str]:
        """The kept columns; the first result decides on them, and writes the header."""
        if self.manifest.columns is None:
            self.manifest.columns = list(keep)
            with writing(self._stream_path):
                self._out.write(self._format.header(self.manifest.columns))
        return self.manifest.columns

    def _error(self, line: bytes) -> None:
        if self._errors is None:
            self._errors = open_locked(self.errors_path)
        with writing(self.errors_path):
            self._errors.write(line + b"\n")

    def _close_errors(self) -> None:
        if self._errors:
            self._errors.close()
            self._errors = None

    def _write_standing(self, stands: Callable[[Sequence[dict[str, Any]]], Sequence[bool]]) -> tuple[int, int]:
        """Writes a new error file without the failures that no longer stand; returns how many do, and its length.

        The manifest names the length before the files change places, so that a cut between is made good.
        """
        failed = 0
        new = beside(self.errors_path)
        with writing(self.errors_path), self.errors_path.open("rb") as source, new.open("wb") as target:
            while raw := list(islice(source, CHUNK)):
                lines = [orjson.loads(line) for line in raw]
                answers = iter(stands([line for line in lines if not _is_bad(line)]))
                for text, line in zip(raw, lines, strict=True):
                    if _is_bad(line):
                        target.write(text)
                    elif next(answers):
                        target.write(text)
                        failed += 1
            return failed, sync(target)

    def _swap(self, manifest: Manifest) -> None:
        """Lets the error files change places, if they have not before the cut."""
        with suppress(FileNotFoundError):
            beside(self.errors_path).replace(real(self.errors_path))
        manifest.swapping = False

    def _found(self, new: Manifest, force: bool) -> Manifest:
        """What an earlier command left here, if it is this batch's; refuses to touch anything else."""
        found = Manifest.load(self._manifest_path)
        out, errors = max(size(self.path), size(self._stream_path)), size(self.errors_path)
        if force:
            if self._format.packed:
                remove(self.path)
            return new
        if out == 0 and (errors == 0 or found is not None) and not (found and found.batch == new.batch):
            return new
        if found is None:
            there = self.path if size(self.path) else self._stream_path if out else self.errors_path
            raise UserError(f"{str(there)!r} exists; choose another file or overwrite it with --force")
        if found.batch != new.batch:
            raise UserError(
                f"{str(self.path)!r} holds {found.batch}, not {new.batch} "
                f"({difference(found, new.source, new.parameters)}); choose another file or overwrite it with --force"
            )
        if adopt_errors(self.path, self.errors_path, found):
            errors = size(self.errors_path)
        if found.swapping:
            self._swap(found)
            errors = size(self.errors_path)
        if self._format.packed and found.complete:
            return found if self.path.exists() else new
        written = size(self._stream_path)
        if written == 0 and found.out_bytes:
            return new
        if written < found.out_bytes or (errors < found.errors_bytes and not found.complete):
            raise UserError(f"{str(self.path)!r} was changed since it was written; start over with --force")
        return found

    def _save_manifest(self) -> None:
        with replacing(self._manifest_path, self.path) as file:
            file.write(self.manifest.content)

    def _unpack(self) -> None:
        """Puts the rows of a complete Parquet file back where they can be added to."""
        if self._format.packed:
            with writing(self._stream_path), self.path.open("rb") as packed:
                self._out.truncate(0)
                self._out.writelines(self._parquet.unpack(packed))
                self.manifest.out_bytes = sync(self._out)

    def _cut(self) -> None:
        """Removes what was written after the last save."""
        if self.manifest.complete:
            return
        self._out.truncate(self.manifest.out_bytes)
        self._close_errors()
        if self.manifest.errors_bytes:
            os.truncate(self.errors_path, self.manifest.errors_bytes)
        else:
            remove(self.errors_path)


def _is_bad(line: Mapping[str, Any]) -> bool:
    """Whether a line of the error file is of the dataset's, and never reached the queue."""
    return line["error"]["code"] == "invalid_line"
