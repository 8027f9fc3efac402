"""Which rows of a dataset are run, and what each of them asks for."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import lines
from .request.faults import Fault, column_names
from .request.fields import KNOWN, NAMES
from .sources import Source, Table

if TYPE_CHECKING:
    from .templates import Condition, Template


@dataclass(frozen=True)
class RowOptions:
    """How rows become requests, and which of them do; all of it may be left out.

    With a `template`, Jinja2 over the row's columns, a row is data: the template makes the prompt, and parameters
    come from the defaults. Without one a row is a line in one of the two forms that `lines` knows; in a CSV file its
    parameters are written as in JSON. `where` is a Jinja2 expression; of the rows for which it holds the first `limit`
    are taken, of these `sample` at random, always the same. `keep` names the columns that a row's result hands back.
    `format` is one of sources.FORMATS.
    """

    template: str | None = None
    id_column: str | None = None
    where: str | None = None
    limit: int | None = None
    sample: int | None = None
    keep: tuple[str, ...] = ()
    format: str | None = None


@dataclass(frozen=True)
class Asked:
    """What a row asks for: a line in the sense of `lines`, and the system message for a chat that has none."""

    line: dict[str, Any]
    system: str | None
    keep: dict[str, Any] | None


class Rows:
    """The chosen rows of a source, each with its number, in the order of the source; may be read several times."""

    def __init__(self, source: Source, options: RowOptions, system: str | None = None) -> None:
        self._source, self._options = source, options
        self._template: Template | None = None
        self._system: Template | None = None
        self._where: Condition | None = None
        if not (options.template is system is options.where is None):
            self._compile(options.template, system, options.where)
        self._used = self._asked_for()
        self._data = {*options.keep, options.id_column} - KNOWN
        self._sample: set[int] | None = None

    def _compile(self, template: str | None, system: str | None, where: str | None) -> None:
        from .templates import Condition, Sandbox, Template  # Jinja2 is slow to load, and most datasets need none of it

        sandbox = Sandbox()
        self._template = None if template is None else Template(template, "template", sandbox)
        self._system = None if system is None else Template(system, "system message", sandbox)
        self._where = None if where is None else Condition(where, "condition", sandbox)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
        if self._options.sample is None:
            return self._taken()
        if self._sample is None:
            self._sample = self._draw(self._options.sample)
        return (item for item in self._taken() if item[0] in self._sample)

    def _taken(self) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
        """The rows that are wanted, up to the limit, and those of which that cannot be told."""
        taken = 0
        for number, row in self._source.rows(self._used):
            if taken == self._options.limit:
                return
            judged = row if isinstance(row, Fault) or self._where is None else self._judged(row)
            if judged is not None:
                taken += not isinstance(judged, Fault)
                yield number, judged

    def _asked_for(self) -> frozenset[str] | None:
        """The columns of which more than the name matters; None if all may."""
        used = {*self._options.keep, self._options.id_column or "id"}
        used |= {"id", "custom_id"} if self._template else NAMES
        for text in (self._template, self._system, self._where):
            if text and text.columns is None:
                return None
            used |= text.columns if text and text.columns else set()
        return frozenset(used)

    def _judged(self, row: dict[str, Any]) -> dict[str, Any] | Fault | None:
        assert self._where
        try:
            return row if self._where(row) else None
        except Fault as fault:
            return fault

    def _draw(self, size: int) -> set[int]:
        """The numbers of a sample; a larger one has all rows of a smaller one."""
        dice = random.Random(0)
        drawn = ((dice.random(), number) for number, row in self._taken() if not isinstance(row, Fault))
        return {number for _, number in heapq.nsmallest(size, drawn)}

    def custom_id(self, row: dict[str, Any], number: int) -> str:
        """The id of a row: what the named column says, else the row itself, else its number."""
        if column := self._options.id_column:
            return lines.checked_id(self._column(row, column), column)
        if self._template:
            row = {name: row[name] for name in ("id", "custom_id") if row.get(name) is not None}
        return lines.custom_id(row, number)

    def asked(self, row: dict[str, Any]) -> Asked:
        """What a row asks for; raises Fault."""
        keep = {name: self._kept(row, name) for name in self._options.keep} or None
        system = self._system(row) if self._system else None
        if self._template:
            return Asked({"prompt": self._template(row)}, system, keep)
        if self._data:
            row = {name: value for name, value in row.items() if name not in self._data}
        if isinstance(self._source, Table):
            row = lines.from_texts(row)
        return Asked(row, system, keep)

    def _kept(self, row: dict[str, Any], name: str) -> Any:
        value = self._column(row, name)
        if _is_binary(value):
            raise Fault(f"column {name!r} is binary and cannot be kept")
        return value

    def _column(self, row: dict[str, Any], name: str) -> Any:
        if name not in row:
            raise Fault(f"has no column {name!r}; it has {column_names(row)}")
        return row[name]


def _is_binary(value: Any) -> bool:
    """Whether there are bytes in it that are no text."""
    match value:
        case dict():
            return any(map(_is_binary, value.values()))
        case list():
            return any(map(_is_binary, value))
        case _:
            return isinstance(value, bytes)
