"""Failures by what they have in common: their reason but for numbers and quoted words, and their pair."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .failures import Failure

VARIES = re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|(?<!\w)\d[\d.,:]*(?<![.,:])(?!\w)")
"""What differs between lines that failed for the same reason."""

GAP = "…"
"""Stands for it."""


@dataclass
class Group:
    """Failures of one kind: how many, the first of them by line number, and how many each worker had."""

    kind: str
    pair: str
    first: Failure
    count: int = 0
    workers: Counter[str] = field(default_factory=Counter)

    def add(self, failure: Failure) -> None:
        self.count += 1
        self.first = min(self.first, failure, key=lambda one: one.n)
        if failure.worker:
            self.workers[failure.worker] += 1

    def search(self, others: Iterable[Group]) -> str:
        """A text by which `--reason` finds them, and none of the `others` if there is such a text."""
        parts = sorted((part.strip() for part in self.kind.split(GAP)), key=len, reverse=True)
        strange = [other.kind.lower() for other in others if other.kind != self.kind]
        return next((part for part in parts if not any(part.lower() in kind for kind in strange)), parts[0])


def grouped(failures: Iterable[Failure]) -> list[Group]:
    """The largest group first."""
    groups: dict[tuple[str, str], Group] = {}
    for failure in failures:
        kind = VARIES.sub(GAP, failure.reason)
        group = groups.get((kind, failure.pair))
        if group is None:
            group = groups[kind, failure.pair] = Group(kind, failure.pair, failure)
        group.add(failure)
    return sorted(groups.values(), key=lambda group: (-group.count, group.kind, group.pair))
