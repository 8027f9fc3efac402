"""The results file: written so that a cut at any moment, and any number of repetitions, leave each line once.

Beside OUT lies a manifest, `OUT.draftmill.json`: which batch OUT holds, how far the batch's result stream was
read, and how long OUT and the error file were then. What lies past those lengths was written after the last
save; it is cut away before writing goes on.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from .batches import Result
from .dataset import BadLine
from .errors import UserError, explain_file

SAVE_SECONDS = 2.0
"""How much copying of results an interruption may have to repeat."""


class WriteError(UserError):
    """A file could not be written to its end, and may end in half a line; the last save still stands."""


@dataclass
class Manifest:
    """How far OUT is. Lengths are bytes; `after` is the last entry of the result stream that was written."""

    batch: str
    after: str = "0-0"
    out_bytes: int = 0
    errors_bytes: int = 0
    done: int = 0
    failed: int = 0
    bad: int = 0
    bad_written: bool = False
    in_order: bool = False
    complete: bool = False


class Output:
    """OUT, its error file `<stem>.errors.jsonl` and its manifest, for one batch; a context manager."""

    def __init__(self, path: Path, batch: str, force: bool = False) -> None:
        self.path = path
        self.errors_path = path.with_name(f"{path.stem}.errors.jsonl")
        self._manifest_path = path.with_name(f"{path.name}.draftmill.json")
        self._out = _open(path)
        self._errors: BinaryIO | None = None
        self._saved = time.monotonic()
        self.manifest = Manifest(batch) if force else self._found(batch)
        self._cut()
        self.save()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not WriteError:
                self.save()
        finally:
            for file in filter(None, (self._out, self._errors)):
                with suppress(OSError):  # a full disk has been reported before
                    file.close()
        if self.manifest == Manifest(self.manifest.batch):
            self.path.unlink()
            self._manifest_path.unlink()

    def write(self, result: Result) -> None:
        """Adds one result to OUT, or to the error file if it is an error."""
        if orjson.loads(result.line).get("error") is None:
            with _writing(self.path):
                self._out.write(result.line + b"\n")
            self.manifest.done += 1
        else:
            self._error(result.line)
            self.manifest.failed += 1
        self.manifest.after = result.entry

    def write_bad(self, line: BadLine) -> None:
        """Adds a line that could not be submitted to the error file."""
        self._error(orjson.dumps(line.record()))
        self.manifest.bad += 1

    def save_sometimes(self) -> None:
        """Saves if the last time is long enough ago."""
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Puts what was written on the disk, then says so in the manifest."""
        with _writing(self.path):
            self.manifest.out_bytes = _sync(self._out)
            if self._errors:
                self.manifest.errors_bytes = _sync(self._errors)
            _replace(self._manifest_path, orjson.dumps(asdict(self.manifest), option=orjson.OPT_INDENT_2) + b"\n")
        self._saved = time.monotonic()

    def start_over(self) -> None:
        """Forgets all that was written."""
        self.manifest = Manifest(self.manifest.batch)
        self._cut()

    def sort(self, numbers: dict[str, int]) -> None:
        """Puts OUT in the order of the line numbers that `numbers` gives for each custom_id."""
        self.save()
        places: list[tuple[int, int, int]] = []
        with _writing(self.path), self.path.open("rb") as source, _beside(self.path).open("wb") as target:
            offset = 0
            for line in source:
                places.append((numbers[orjson.loads(line)["custom_id"]], offset, len(line)))
                offset += len(line)
            for _, start, length in sorted(places):
                source.seek(start)
                target.write(source.read(length))
            _sync(target)
        _beside(self.path).replace(self.path)
        self._out.close()
        self._out = _open(self.path)
        self.manifest.in_order = True

    def _error(self, line: bytes) -> None:
        if self._errors is None:
            self._errors = _open(self.errors_path)
        with _writing(self.errors_path):
            self._errors.write(line + b"\n")

    def _found(self, batch: str) -> Manifest:
        """What an earlier command left here, if it is this batch's; refuses to touch anything else."""
        out, errors = _size(self.path), _size(self.errors_path)
        manifest = self._load()
        if out == 0 and (errors == 0 or manifest is not None) and not (manifest and manifest.batch == batch):
            return Manifest(batch)
        if manifest is None:
            raise UserError(f"{str(self.path)!r} exists; choose another file or overwrite it with --force")
        if manifest.batch != batch:
            raise UserError(
                f"{str(self.path)!r} holds {manifest.batch}, not {batch} (other lines or other parameters); "
                "choose another file or overwrite it with --force"
            )
        if out == 0 and manifest.out_bytes:
            return Manifest(batch)
        if out < manifest.out_bytes or (errors < manifest.errors_bytes and not manifest.complete):
            raise UserError(f"{str(self.path)!r} was changed since it was written; start over with --force")
        return manifest

    def _load(self) -> Manifest | None:
        try:
            return Manifest(**orjson.loads(self._manifest_path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _cut(self) -> None:
        if self.manifest.complete:
            return
        self._out.truncate(self.manifest.out_bytes)
        if self._errors:
            self._errors.close()
            self._errors = None
        if self.manifest.errors_bytes:
            os.truncate(self.errors_path, self.manifest.errors_bytes)
        else:
            self.errors_path.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuses an OUT that cannot be written, before any work is done."""
    if path.is_dir():
        raise UserError(f"cannot write {str(path)!r}: it is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {str(path)!r}: not a regular file; name a file")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; create it")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"cannot write {str(path)!r}: permission denied; choose another place")


def _open(path: Path) -> BinaryIO:
    """Opens for appending; no second process may write the same file."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise UserError(explain_file(error, "cannot write", path)) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another draftmill is writing {str(path)!r}; wait for it or choose another file") from None
    return file


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(explain_file(error, "cannot write", path)) from error


def _sync(file: BinaryIO) -> int:
    """Puts the file on the disk and returns its length."""
    file.flush()
    os.fsync(file.fileno())
    return os.fstat(file.fileno()).st_size


def _replace(path: Path, content: bytes) -> None:
    with _beside(path).open("wb") as file:
        file.write(content)
        _sync(file)
    _beside(path).replace(path)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
