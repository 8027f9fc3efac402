"""Whole runs of a dataset, prefill and all: the seconds of each arm, one line of a table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from ..request import Request
from .arms import Arm
from .measure import Expected, whole
from .report import Line

PART = 8
"""Arms that take one request after another run one request in so many: elsewhere a dataset takes them too long."""


def dataset_line(
    label: str,
    arms: Mapping[str, Callable[[], Arm]],
    single: Collection[str],
    requests: Sequence[Request],
    repeats: int,
    expected: Expected | None,
    at: int | None = None,
) -> Line:
    """All requests by arms that take turns; after them, once, the first few requests by arms that are `single`."""
    cells = whole({name: arm for name, arm in arms.items() if name not in single}, requests, repeats, expected)
    few = requests[: max(1, len(requests) // PART)]
    alone = whole({name: arm for name, arm in arms.items() if name in single}, few, 1, expected)
    for cell in alone.values():
        cell.requests = len(few)
    facts = {"requests": len(requests), "prompt tokens": sum(len(request.tokens) for request in requests)}
    if tokens := next((cell.samples[0].tokens for cell in cells.values() if cell.samples), None):
        facts["new tokens"] = tokens
    return Line(label, cells | alone, at, facts)
