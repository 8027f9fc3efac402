"""The page about one batch's failures: their reasons, and the lines, a page at a time. It needs no JavaScript.

Each request reads the record of failures anew, at most MOST_READ of them, and no body of a job.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import redis as redis_py
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...cli.report import word
from ...queue import batches
from ...queue.batches import BatchStatus
from ...queue.failed.failures import Failure, count, failures
from ...queue.failed.groups import Group, grouped
from ...queue.wire import slug

MOST_READ = 20_000
MOST_GROUPS = 20
PER_PAGE = 50
UNKNOWN = "The reason is not known here; it stands in the error file beside the results."


@dataclass(frozen=True)
class Asked:
    """What a request asks for: the failures of a batch for a `reason` (see `Failure.is_for`) and a pair, as keys have
    it, if these are not empty; and which page of them, from 1.
    """

    batch: str
    reason: str = ""
    pair: str = ""
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Asked:
        page = query.get("page", "")
        return cls(
            query.get("batch", ""),
            query.get("reason", "").strip(),
            query.get("pair", ""),
            int(page) if page.isdecimal() and len(page) < 9 else 1,
        )

    def link(self, **other: Any) -> str:
        """Where the same is with something else asked."""
        return "failures?" + urlencode({"batch": self.batch, "reason": self.reason, "pair": self.pair} | other)


class FailuresPage:
    """The page, written from what one Redis holds."""

    def __init__(self, redis: redis_py.Redis, folder: Path) -> None:
        self._redis = redis
        pages = Environment(
            loader=FileSystemLoader(folder),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        pages.filters["thousands"] = "{:,}".format
        self._template = pages.get_template("failures.html")

    def write(self, asked: Asked) -> str | None:
        """None if there is no such batch. Raises RedisError."""
        state = batches.status(self._redis, asked.batch)
        if state is None:
            return None
        read = list(islice(failures(self._redis, asked.batch), MOST_READ))
        all = count(self._redis, asked.batch) if len(read) == MOST_READ else len(read)
        found = sorted((one for one in read if one.is_for(asked.reason, asked.pair)), key=lambda one: one.n)
        return self._template.render(trouble="", **_content(asked, state, found, len(read), all))

    def trouble(self, text: str) -> str:
        """The page while there is nothing else to show."""
        return self._template.render(trouble=text)


def _content(asked: Asked, state: BatchStatus, found: list[Failure], read: int, all: int) -> dict[str, Any]:
    pairs = {slug(pair): pair for pair in state.pairs}
    groups = grouped(found)
    shown = groups[:MOST_GROUPS]
    pages = max(1, -(-len(found) // PER_PAGE))
    page = min(max(1, asked.page), pages)
    first = (page - 1) * PER_PAGE
    return {
        "asked": asked,
        "name": state.source or state.id,
        "about": _joined(state.id, ", ".join(state.pairs), state.user, word(state)),
        "all": all,
        "lines": state.total,
        "unread": all - read,
        "found": len(found),
        "pairs": pairs,
        "kinds": len(groups),
        "groups": [_group(asked, group, shown, pairs) for group in shown],
        "rows": [_row(one, pairs) for one in found[first : first + PER_PAGE]],
        "first": first + 1,
        "last": min(first + PER_PAGE, len(found)),
        "before": asked.link(page=page - 1) if page > 1 else "",
        "after": asked.link(page=page + 1) if page < pages else "",
        "retry": f"--retry-failed --reason {shlex.quote(asked.reason)}" if asked.reason else "--retry-failed",
    }


def _group(asked: Asked, group: Group, shown: list[Group], pairs: Mapping[str, str]) -> dict[str, str]:
    where = (
        f"on {len(group.workers)} workers"
        if len(group.workers) > 1
        else "".join(f"on {name}" for name in group.workers)
    )
    return {
        "count": f"{group.count:,}",
        "kind": group.kind or UNKNOWN,
        "about": _joined(pairs.get(group.pair, group.pair), where, f"first in line {group.first.n:,}"),
        "link": asked.link(reason=group.search(shown), pair=group.pair),
    }


def _row(one: Failure, pairs: Mapping[str, str]) -> dict[str, str]:
    tries = "" if not one.attempts else "1 try" if one.attempts == 1 else f"{one.attempts} tries"
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(one.at)) if one.at else ""
    return {
        "message": one.message or UNKNOWN,
        "about": _joined(f"line {one.n:,}", one.custom_id, pairs.get(one.pair, one.pair), one.worker, tries, at),
    }


def _joined(*parts: str) -> str:
    return " · ".join(filter(None, parts))
