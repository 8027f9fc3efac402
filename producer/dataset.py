"""Reads a JSONL dataset as a stream of jobs and bad lines, in memory that does not grow with the prompts."""

from __future__ import annotations

import hashlib
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from . import lines
from .contract import MOST_BODY_BYTES, MOST_LINES, JobBody
from .errors import UserError, explain_file
from .lines import Defaults, Fault

BOM = b"\xef\xbb\xbf"
NOT_IN_ID: Any = {"batch": True, "line": True, "sampling": {"max_seconds"}}


@dataclass(frozen=True)
class RowOptions:
    """What is made of a row: `keep` names the columns that its result hands back."""

    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be run."""

    number: int
    reason: str
    custom_id: str | None = None

    def __str__(self) -> str:
        return f"line {self.number}: {self.reason}"

    def record(self) -> dict[str, Any]:
        """The line of the error file, in the form of an OpenAI Batch error line."""
        return {
            "id": f"line-{self.number}",
            "custom_id": self.custom_id,
            "response": None,
            "error": {"code": "invalid_line", "message": str(self)},
        }


@dataclass
class Survey:
    """What the first pass over a dataset learns."""

    batch: str = ""
    good: int = 0
    bad: int = 0
    first_bad: BadLine | None = None
    notes: Counter[str] = field(default_factory=Counter)


class Dataset:
    """A dataset to be run by one pair. Iterating reads it from the start; it may be read several times.

    `source` is a path or "-" (standard input); what can be read only once is copied to a
    temporary file first.
    """

    def __init__(self, source: str, pair: str, defaults: Defaults, options: RowOptions | None = None) -> None:
        self.name = "standard input" if source == "-" else source
        self.pair = pair
        self.defaults = defaults
        self.options = options or RowOptions()
        self.notes: Counter[str] = Counter()
        try:
            self._file = _open(source)
        except OSError as error:
            raise UserError(explain_file(error, "cannot read", self.name)) from error

    def __iter__(self) -> Iterator[JobBody | BadLine]:
        seen: set[bytes] = set()
        self.notes.clear()
        self._file.seek(0)
        for number, raw in enumerate(self._lines(), 1):
            text = raw.removeprefix(BOM).strip() if number == 1 else raw.strip()
            if len(text) > MOST_BODY_BYTES:
                yield BadLine(number, f"longer than {MOST_BODY_BYTES:,} bytes")
            elif text:
                yield self._read(text, number, seen)

    def _lines(self) -> Iterator[bytes]:
        """The lines of the file; of one that is too long only its beginning."""
        while line := self._file.readline(MOST_BODY_BYTES + 100):
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = self._file.readline(MOST_BODY_BYTES)
            yield line

    def _read(self, raw: bytes, number: int, seen: set[bytes]) -> JobBody | BadLine:
        name = None
        try:
            line = lines.parse(raw)
            name = lines.custom_id(line, number)
            keep = self._kept(line)
            body = lines.job_body(line, name, number, self.pair, self.defaults, self.notes)
            digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
            if digest in seen:
                raise Fault(f"custom_id {name!r} was already used by an earlier line")
            seen.add(digest)
            return body.model_copy(update={"keep": keep}) if keep else body
        except Fault as fault:
            return BadLine(number, str(fault), name)

    def _kept(self, row: dict[str, Any]) -> dict[str, Any]:
        """The columns of a row that its result hands back."""
        try:
            return {name: row[name] for name in self.options.keep}
        except KeyError as error:
            raise Fault(f"has no {error} to keep") from None

    def survey(self) -> Survey:
        """Reads the dataset once: its batch id and what is wrong with it.

        The id is a hash of the jobs and the pair, so the same work has the same id wherever it is submitted. How long
        it may take is no part of it.
        """
        survey = Survey()
        content = hashlib.sha256(self.pair.encode())
        for item in self:
            if isinstance(item, BadLine):
                survey.bad += 1
                survey.first_bad = survey.first_bad or item
            else:
                survey.good += 1
                content.update(_identity(item) + b"\n")
        if survey.good > MOST_LINES:
            raise UserError(f"{self.name} has {survey.good:,} lines, a batch at most {MOST_LINES:,}; split the file")
        survey.batch = f"batch_{content.hexdigest()[:24]}"
        survey.notes = self.notes.copy()
        if not survey.good:
            self._refuse(survey)
        return survey

    def _refuse(self, survey: Survey) -> None:
        if survey.first_bad is None:
            raise UserError(f"{self.name} is empty; a line looks like {EXAMPLE}")
        raise UserError(f"{self.name} has no usable line; {survey.first_bad}; a line looks like {EXAMPLE}")


def _identity(body: JobBody) -> bytes:
    """What of a job its batch's id derives from."""
    exclude = NOT_IN_ID if body.keep else NOT_IN_ID | {"keep": True}
    return body.model_dump_json(exclude=exclude).encode()


EXAMPLE = orjson.dumps({"id": "1", "prompt": "Why is the sky blue?"}).decode()


def _open(source: str) -> BinaryIO:
    if source == "-":
        return _copy(sys.stdin.buffer)
    file = Path(source).open("rb")  # noqa: SIM115 -- the Dataset keeps it
    return file if stat.S_ISREG(Path(source).stat().st_mode) else _copy(file)


def _copy(stream: BinaryIO) -> BinaryIO:
    copy = tempfile.TemporaryFile()  # noqa: SIM115 -- the Dataset keeps it
    shutil.copyfileobj(stream, copy)
    return copy
