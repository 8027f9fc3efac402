"""What a fault of the suite yields: a figure to print and whether it meets its target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """`text` is what was measured."""

    text: str
    holds: bool


@dataclass(frozen=True)
class Fault:
    """One row of the table; `run` takes whether the size is full."""

    name: str
    target: str
    run: Callable[[bool], Figure]
