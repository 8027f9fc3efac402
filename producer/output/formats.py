"""How a result stands in OUT: as a line of JSON, or as a row of a table that is flat."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, BinaryIO, Protocol

import orjson

from ..queue.errors import UserError
from .records import whole_lines

COLUMNS = ("custom_id", "text", "finish_reason", "prompt_tokens", "completion_tokens", "tokens_per_round")
"""Columns of every table; the kept ones follow."""

OF_ALL = {
    "text": "texts",
    "finish_reason": "finish_reasons",
    "reasoning": "all_reasoning",
    "tool_calls": "all_tool_calls",
    "logprobs": "all_logprobs",
}
"""Columns that tell of the first choice, and those that have a list of the same of all, where there are several."""

EXTRA = ("reasoning", "tool_calls", "logprobs", *OF_ALL.values(), "draftmill_notes")
"""Columns behind these, in a table that has results with thoughts, with calls of tools, with log-probabilities, with
several choices, with notes. A table gets each with the first such result.
"""


class Format(Protocol):
    """Writes results one by one, so that OUT can be read and gone on with at any time.

    `packed` says that these are kept in a file beside OUT, which OUT is made of when it is complete, `headed` that all
    have the columns of the header.
    """

    packed: bool
    headed: bool

    def header(self, keep: Sequence[str], extra: Sequence[str]) -> bytes:
        """What stands above the first result; `keep` names the columns that all of them hand back, `extra` some of
        EXTRA.
        """
        ...

    def record(self, raw: bytes, line: Mapping[str, Any], keep: Sequence[str], extra: Sequence[str]) -> bytes:
        """One result: its output line as it came, and parsed."""
        ...

    def records(self, file: BinaryIO) -> Iterator[tuple[str | None, bytes]]:
        """What was written, with the custom_id of each whole record; the header has none.

        Raises ValueError, LookupError or TypeError at what was never written.
        """
        ...


class Jsonl:
    """The output lines of the OpenAI Batch API, as they are."""

    packed = False
    headed = False

    def header(self, keep: Sequence[str], extra: Sequence[str]) -> bytes:
        return b""

    def record(self, raw: bytes, line: Mapping[str, Any], keep: Sequence[str], extra: Sequence[str]) -> bytes:
        return raw + b"\n"

    def records(self, file: BinaryIO) -> Iterator[tuple[str | None, bytes]]:
        for raw in whole_lines(file):
            yield orjson.loads(raw)["custom_id"], raw


class Rows(Jsonl):
    """Flat rows as lines of JSON, which become a Parquet file."""

    packed = True

    def record(self, raw: bytes, line: Mapping[str, Any], keep: Sequence[str], extra: Sequence[str]) -> bytes:
        return orjson.dumps(row(line) | extras(line)) + b"\n"


class Csv:
    """Comma-separated, UTF-8, with a header. An empty field is null or an empty text; what nests is JSON."""

    packed = False
    headed = True

    def header(self, keep: Sequence[str], extra: Sequence[str]) -> bytes:
        return _csv([*COLUMNS, *names(keep), *extra])

    def record(self, raw: bytes, line: Mapping[str, Any], keep: Sequence[str], extra: Sequence[str]) -> bytes:
        if list(line.get("keep") or {}) != list(keep):
            raise UserError(
                f"{line['custom_id']!r} keeps other columns than the line before it, which a CSV file cannot hold; "
                "write to a .jsonl file"
            )
        found = extras(line)
        return _csv(_cell(value) for value in (*row(line).values(), *(found.get(name) for name in extra)))

    def records(self, file: BinaryIO) -> Iterator[tuple[str | None, bytes]]:
        header, parts, quotes = True, [], 0
        for part in whole_lines(file):
            parts.append(part)
            quotes += part.count(b'"')
            if quotes % 2 == 0:  # else the line breaks within quotes
                raw = b"".join(parts)
                if header and _first_cell(raw) != COLUMNS[0]:
                    raise ValueError("the header is missing")
                yield None if header else _first_cell(raw), raw
                header, parts = False, []


FIRST_CELL = re.compile(rb'"((?:[^"]|"")*)"|([^,\n]*)')

LINES = Jsonl()
FORMATS: dict[str, Format] = {
    "": LINES,
    ".jsonl": LINES,
    ".ndjson": LINES,
    ".json": LINES,
    ".txt": LINES,
    ".csv": Csv(),
    ".parquet": Rows(),
}
"""By OUT's extension. What promises something else is refused, never filled with JSON lines."""

ERRORS, PARTIAL, MANIFEST, ORDER = OWN = (".errors.jsonl", ".partial.jsonl", ".draftmill.json", ".draftmill.order")
"""Ends of names that files beside an OUT have; another OUT of such a name would be written over."""


def format_of(path: PurePath, url: str = "") -> Format:
    """The format that OUT's name tells, or the path of its `url`; raises UserError if it is none to be written."""
    out = url or str(path)
    name = path.name.lower()
    if name == "-":
        raise UserError("cannot write '-': results go to a file that can be gone on with; name one")
    if name.endswith(OWN):
        raise UserError(f"cannot write {out!r}: draftmill keeps files of such names beside OUT; choose another name")
    dot, extension = name.rpartition(".")[1:]
    found = FORMATS.get(dot + extension if dot else "")
    if found is None:
        raise UserError(
            f"cannot write {out!r}: .{extension} is no format of results; end the name in .jsonl, .csv or .parquet"
        )
    return found


def row(line: Mapping[str, Any]) -> dict[str, Any]:
    """An output line with a completion as a flat row: COLUMNS, then what was kept. The first choice stands for all."""
    body, keep = line["response"]["body"], line.get("keep") or {}
    choice, usage = body["choices"][0], body["usage"]
    counts = usage["prompt_tokens"], usage["completion_tokens"], usage.get("tokens_per_round")
    own = dict(zip(COLUMNS, (line["custom_id"], _text(choice), choice["finish_reason"], *counts), strict=True))
    return own | dict(zip(names(keep), keep.values(), strict=True))


def extras(line: Mapping[str, Any]) -> dict[str, Any]:
    """What an output line with a completion has for the columns of EXTRA."""
    choices = [_told(choice) for choice in line["response"]["body"]["choices"]]
    found = {name: value for name, value in choices[0].items() if name in EXTRA}
    if len(choices) > 1:
        for name, column in OF_ALL.items():
            if any(name in choice for choice in choices):
                found[column] = [choice.get(name) for choice in choices]
    if notes := notes_in(line):
        found["draftmill_notes"] = notes
    return found


def notes_in(line: Mapping[str, Any]) -> list[str]:
    """What of the request its worker could not do, as an output line tells."""
    body = (line.get("response") or {}).get("body") or {}
    return body.get("draftmill", {}).get("notes", [])


def extra_in(header: bytes) -> list[str]:
    """The columns of EXTRA in a CSV file's header; no kept column has such a name."""
    return [name for name in next(csv.reader([header.decode()])) if name in EXTRA]


def widened(record: bytes, cells: Sequence[str]) -> bytes:
    """A record of a CSV file, or its header, with more cells at its end."""
    return record.removesuffix(b"\n") + b"," + _csv(cells)


def names(keep: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """What kept columns are called in a table: one with the name of ours gets `input_` in front."""
    found: list[str] = []
    for name in keep:
        while name in COLUMNS or name in EXTRA or name in found:
            name = f"input_{name}"
        found.append(name)
    return found


def _told(choice: Mapping[str, Any]) -> dict[str, Any]:
    """What a choice has for the columns in OF_ALL."""
    message = choice.get("message", {})
    found = {"text": _text(choice), "finish_reason": choice["finish_reason"]}
    found |= {name: message[name] for name in ("reasoning", "tool_calls") if name in message}
    return found | ({"logprobs": choice["logprobs"]} if choice.get("logprobs") else {})


def _text(choice: Mapping[str, Any]) -> str | None:
    return choice["text"] if "text" in choice else choice["message"]["content"]


def _csv(cells: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)  # its line end, \r\n, makes it quote both characters
    return text.getvalue().removesuffix("\r\n").encode() + b"\n"


def _first_cell(row: bytes) -> str:
    """By hand, for Python's reader has one limit for the fields of all files, which those that users give us need."""
    quoted, bare = FIRST_CELL.match(row).groups()  # pyright: ignore[reportOptionalMemberAccess] -- it matches anything
    return (bare if quoted is None else quoted.replace(b'""', b'"')).decode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()
