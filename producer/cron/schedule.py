"""A schedule: which slots it has, what becomes of missed ones, and the arguments of `draftmill submit` that it holds.

A schedule is data. What is read back from Redis is checked as strictly as what a user types: it can name options of
`submit`, files below the scheduler's folder and URLs below those that the scheduler was started with, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime, tzinfo
from itertools import count, islice
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from croniter import croniter
from pydantic import BaseModel, ConfigDict, Field

from ..input import remote
from ..output import stores
from ..queue.errors import UserError
from ..queue.schedules import spoken

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
RESULTS = (".jsonl", ".csv", ".parquet")
"""What the results of a slot may be written as."""
LATE_MS = 60_000
"""A slot that nobody took within this time, or before the next one, is missed."""
SHORTEST_MS = 100
LONGEST_MS = 366 * 24 * 3_600_000
FARTHEST_YEARS = 50
"""Between two slots of an expression."""
COMPARED = 1000
"""Slots whose OUT must differ."""

Missed = Literal["skip", "one", "all"]

Check = Callable[[tuple[str, ...]], None]
"""Raises UserError for arguments that `draftmill submit` would not take, or that a schedule must not have."""


class Schedule(BaseModel):
    """What runs when. Slots are Unix milliseconds; exactly one of `every_ms` and `cron` is set.

    `every_ms` has a slot at each multiple since 1970 began in UTC. `cron` has five fields and is read in `timezone`.
    When clocks go forward, slots in the missing hour are one slot at its end. When they go back, a slot in the doubled
    hour comes once, at its first time, unless the expression runs through all hours (`*` in the second field): then
    it comes at both.

    `output` is where results go, a path or a URL with the slot's time in it (strftime, in `timezone`), or empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    every_ms: Annotated[int, Field(ge=SHORTEST_MS, le=LONGEST_MS)] | None = None
    cron: str | None = None
    timezone: str = "UTC"
    missed: Missed = "one"
    output: str = ""
    arguments: tuple[str, ...]

    def check(self, check_arguments: Check, out_urls: Collection[str] | None = None) -> None:
        """Raises UserError unless all of it can be used; `check_arguments` does for what `submit` would not take.

        An `output` that is a URL must be below one of `out_urls`, if they are given.
        """
        if (self.every_ms is None) == (self.cron is None):
            raise UserError("give either --every or --cron")
        _zone(self.timezone)
        if self.cron is not None:
            _check_cron(self.cron)
            if next(self.slots(0), None) is None:
                raise UserError(f"--cron {self.cron!r}: no such date ever comes")
        check_arguments(self.arguments)
        if self.output:
            self._check_output(out_urls)

    def slots(self, after: int) -> Iterator[int]:
        """The slots later than `after`, the earliest first."""
        if self.every_ms is not None:
            return count((after // self.every_ms + 1) * self.every_ms, self.every_ms)
        return self._read_cron(after, croniter.all_next)

    def latest(self, at: int) -> int:
        """The last slot that is not later than `at`."""
        if self.every_ms is not None:
            return at // self.every_ms * self.every_ms
        return next(self._read_cron((at // 1000 + 1) * 1000, croniter.all_prev))

    def _read_cron(self, start: int, walk: Callable[[Any], Iterator[Any]]) -> Iterator[int]:
        assert self.cron is not None
        once = not self.cron.split()[1].startswith("*")
        found = croniter(self.cron, self.local(start), ret_type=datetime, max_years_between_matches=FARTHEST_YEARS)
        for when in walk(found):
            comes_again = when.utcoffset() != when.replace(fold=0).utcoffset()
            if not (once and comes_again):
                yield round(when.timestamp() * 1000)

    def due(self, first: int, now: int) -> tuple[int | None, int]:
        """Which slot to run next if nobody took those from `first` to `now`, and the first one left after that.

        `all` runs each of them, `one` only the last, `skip` only the last and only if it is not late.
        """
        slot = first if self.missed == "all" else self.latest(now)
        runs = self.missed != "skip" or now - slot <= LATE_MS
        return slot if runs else None, next(self.slots(slot))

    def out(self, slot: int) -> str:
        """Where the results of a slot go: a path relative to the scheduler's folder, or a URL."""
        out = self.local(slot).strftime(self.output)
        if remote.is_url(self.output):
            stores.check_url(out)
            check_url("-o", out, None)
        else:
            check_inside("-o", out)
        return out

    def local(self, slot: int) -> datetime:
        """A slot's time in the schedule's zone."""
        return datetime.fromtimestamp(slot / 1000, _zone(self.timezone))

    def _check_output(self, urls: Collection[str] | None) -> None:
        if remote.is_url(self.output):
            stores.check_url(self.output)
            certain = self.output.partition("%")[0]  # what a slot's time does not change
            check_url("-o", certain, urls, "--out-urls")
        if PurePosixPath(self.output).suffix not in RESULTS:
            raise UserError(f"-o {self.output!r} must end in one of {', '.join(RESULTS)}")
        first = islice(self.slots(0), COMPARED)
        names: dict[str, int] = {}
        for slot in first:
            if (other := names.setdefault(self.out(slot), slot)) != slot:
                raise UserError(
                    f"-o {self.output!r} is one file for the slots {spoken(other)} and {spoken(slot)}; "
                    "put the slot's time into it, such as %Y-%m-%dT%H%M"
                )


def check_inside(what: str, path: str) -> None:
    """Raises UserError if a path leads out of the scheduler's folder; `what` names it."""
    parts = PurePosixPath(path).parts
    if path == "-" or not parts or path.startswith(("/", "~")) or ".." in parts or remote.is_url(path):
        raise UserError(f"{what} {path!r} must be a path relative to the scheduler's folder, and inside it")


def check_url(what: str, url: str, below: Collection[str] | None, option: str = "--urls") -> None:
    """Raises UserError for a URL that is below none of the URLs `below` (None: wherever it is), or that has a login.

    `option` is the scheduler's that names them.
    """
    name = remote.name_of(url)
    if name != url:
        raise UserError(f"{what} {name} has a login or a query, and everybody can read schedules; leave it out")
    if re.search(r"/\.{1,2}(?:/|$)|\\|%2e|%2f|%5c", url, re.IGNORECASE):
        raise UserError(f"{what} {name} must not have . or .. in its path, nor %2E, %2F or %5C")
    if below is not None and not any(url.startswith(f"{folder.rstrip('/')}/") for folder in below):
        folder = name[: name.rindex("/")]
        raise UserError(f"{what} {name} is below no {option} of this scheduler; start it with {option} {folder}")


def _check_cron(expression: str) -> None:
    five = "five fields are needed: minute hour day month weekday"
    if len(expression.split()) != 5 or re.search(r"(?<![a-z])[rh](?![a-z])", expression.lower()):
        raise UserError(f"--cron {expression!r}: {five}")
    try:
        croniter(expression)
    except ValueError as error:
        raise UserError(f"--cron {expression!r}: {error}; {five}") from None


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UserError(f"--timezone {name!r} is unknown; name one such as Europe/Berlin, or UTC") from None
