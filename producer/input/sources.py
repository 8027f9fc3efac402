"""Opens a dataset whatever its format, and reads its rows as a stream: JSONL, CSV, Parquet, a folder."""

from __future__ import annotations

import csv
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Set
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import orjson

from ..queue.errors import UserError, explain_file
from ..queue.wire import MOST_BODY_BYTES
from . import lines, remote
from .columns import Parquet, SavedDataset, is_saved
from .compression import explain_damage, plain
from .fetch import fetch
from .request.faults import Fault
from .texts import TextFiles

BOM = b"\xef\xbb\xbf"
FORMATS = ("jsonl", "csv", "tsv", "parquet")

ARRAY = re.compile(rb"\[\s*(?:[\[{\"]|$)")
"""How a JSON array begins, if its elements could be lines or prompts."""

csv.field_size_limit(MOST_BODY_BYTES)


class NotLines(UserError):
    """A file holds one JSON document, not JSON lines. `reason` says so without the file's name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} is {reason}")
        self.reason = reason


class Source(Protocol):
    """A dataset that can be read again and again, by one reader at a time."""

    def rows(self, used: Set[str] | None = None, /) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
        """Each row with its number, from the start; a Fault stands for a row that cannot be read.

        Of columns that are not `used` only the names matter; their values may be anything. None stands for all columns.
        """
        ...


def name_of(source: str) -> str:
    """What messages call a source; a URL has no login or query there. Raises UserError for a URL that is not read."""
    if source == "-":
        return "standard input"
    return remote.name_of(source) if remote.is_url(source) else source


def open_source(source: str, format: str | None = None, tell: Callable[[str], object] = lambda _: None) -> Source:
    """Opens a file, a folder, a URL, or "-" (standard input); what can be read only once is copied to a temporary file.

    Without a `format` the name's extension tells it; JSONL is the default. JSONL and CSV may be compressed. A folder
    is a saved dataset or text files; a name with a * stands for text files, too. What a URL has is fetched into the
    cache folder first, and `tell` hears how far that is.
    """
    name = name_of(source)
    try:
        if remote.is_url(source):
            file = fetch(source, tell)
        elif source != "-" and (folder := _open_folder(Path(source))):
            return folder
        else:
            file = _open(source)
    except OSError as error:
        raise UserError(explain_file(error, "cannot read", name)) from error
    match format or _extension(source):
        case "parquet":
            return Parquet(file, name)
        case "csv":
            return Table(file, name, ",")
        case "tsv":
            return Table(file, name, "\t")
        case _:
            return JsonLines(file, name)


def _open_folder(path: Path) -> Source | None:
    """A folder, or those of its text files that a pattern such as notes/*.md names; None if `path` is neither."""
    if path.is_dir():
        return SavedDataset(path) if is_saved(path) else TextFiles(path)
    if "*" in path.name and path.parent.is_dir() and not path.exists():
        return TextFiles(path.parent, path.name)
    return None


def _extension(source: str) -> str:
    path = Path((remote.path_of(source) if remote.is_url(source) else source).lower())
    return (path.with_suffix("") if path.suffix in (".gz", ".zst") else path).suffix.removeprefix(".")


def _open(source: str) -> BinaryIO:
    if source == "-":
        return _copy(sys.stdin.buffer)
    file = Path(source).open("rb")  # noqa: SIM115 -- the source keeps it
    return file if stat.S_ISREG(Path(source).stat().st_mode) else _copy(file)


def _copy(stream: BinaryIO) -> BinaryIO:
    copy = tempfile.TemporaryFile()  # noqa: SIM115 -- the source keeps it
    shutil.copyfileobj(stream, copy)
    return copy


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a stream, the first without its byte order mark; of one that is too long only its beginning."""
    first = True
    while line := stream.readline(MOST_BODY_BYTES + 100):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(MOST_BODY_BYTES)
        yield line.removeprefix(BOM) if first else line
        first = False


class JsonLines:
    """One JSON object a line, numbered by line; empty lines are skipped. A single document raises NotLines."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name

    def rows(self, _: Set[str] | None = None, /) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
        with explain_damage(self._name):
            numbered = enumerate(map(bytes.strip, _lines(plain(self._file))), 1)
            texts = ((number, text) for number, text in numbered if text)
            first = list(islice(texts, 2))
            self._refuse_a_document([text for _, text in first])
            for number, text in chain(first, texts):
                yield number, self._row(text)

    def _refuse_a_document(self, first: list[bytes]) -> None:
        """Looks whether the first two lines are those of JSON that is printed over several, or of a single array."""
        begin, *more = first or [b""]
        if ARRAY.match(begin) and not (more and _is_json(begin)):
            raise NotLines(self._name, "a JSON array; JSON lines are needed: jq -c '.[]'")
        if begin == b"{" and not (more and _is_json(more[0])):
            raise NotLines(self._name, "JSON over several lines; one object a line is needed: jq -c .")

    def _row(self, text: bytes) -> dict[str, Any] | Fault:
        if len(text) > MOST_BODY_BYTES:
            return Fault(f"longer than {MOST_BODY_BYTES:,} bytes")
        try:
            return lines.parse(text)
        except Fault as fault:
            return fault


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


class Table:
    """CSV in UTF-8 whose first line names the columns; a row has the number of the line that it begins on.

    Values are texts, as they stand. A row that breaks CSV's rules is a Fault, a quote that is never closed an error:
    it would swallow the rest of the file.
    """

    def __init__(self, file: BinaryIO, name: str, delimiter: str) -> None:
        self._file, self._name, self._delimiter = file, name, delimiter

    def rows(self, _: Set[str] | None = None, /) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
        with explain_damage(self._name):
            records = self._records()
            columns = self._header(next(records, None))
            for number, record in records:
                yield number, record if isinstance(record, Fault) else self._row(columns, record)

    def _records(self) -> Iterator[tuple[int, list[str] | Fault]]:
        reader = csv.reader(self._texts(), delimiter=self._delimiter, strict=True)
        while True:
            number = reader.line_num + 1
            try:
                if record := next(reader):
                    yield number, record
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise UserError(f"{self._name}: a quote on line {number} is never closed; close it") from None
                if "field limit" in str(error):
                    most = f"{MOST_BODY_BYTES:,} characters"
                    raise UserError(
                        f"{self._name}: line {number} begins a field of more than {most}; close its quote"
                    ) from None
                yield number, Fault(f"not CSV: {error}")

    def _texts(self) -> Iterator[str]:
        for number, line in enumerate(_lines(plain(self._file)), 1):
            if len(line) > MOST_BODY_BYTES:
                raise UserError(f"{self._name}: line {number} is longer than {MOST_BODY_BYTES:,} bytes; is this CSV?")
            yield line.decode("utf-8", "surrogateescape")  # what is not UTF-8 harms its own row only

    def _header(self, first: tuple[int, list[str] | Fault] | None) -> list[str]:
        columns = first[1] if first else []
        if isinstance(columns, Fault) or any(_is_not_utf8(column) for column in columns):
            raise UserError(f"{self._name}: its first line is no header of a CSV file in UTF-8; convert it")
        for place, column in enumerate(columns):
            if column in columns[:place]:
                raise UserError(f"{self._name}: its header has the column {column!r} twice; rename one")
        return columns

    def _row(self, columns: list[str], record: list[str]) -> dict[str, Any] | Fault:
        if len(record) != len(columns):
            return Fault(f"has {len(record)} fields, the header has {len(columns)}")
        for column, value in zip(columns, record, strict=True):
            if _is_not_utf8(value):
                return Fault(f"not UTF-8: column {column!r}")
        return dict(zip(columns, record, strict=True))


def _is_not_utf8(text: str) -> bool:
    """Whether bytes that are not UTF-8 have been smuggled through as surrogates."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
