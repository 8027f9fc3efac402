"""What stands beside OUT: which batch it holds, how far it is, and what was said about the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ..input.parameters import changes
from ..queue.batches import BatchStatus


@dataclass
class Manifest:
    """How far OUT is. Lengths are bytes; `after` is the last entry of the result stream that was written.

    `columns` are the kept columns of a table's header, once it is written. `complete_to` is the entry at which OUT
    last had all results: Redis may have dropped those up to it. `retries` is how often failures had been queued again
    when the error file was last cleared of them. `swapping` is set while a new error file takes the old one's place.
    """

    batch: str
    source: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    created: float = 0.0
    after: str = "0-0"
    out_bytes: int = 0
    errors_bytes: int = 0
    columns: list[str] | None = None
    done: int = 0
    failed: int = 0
    bad: int = 0
    bad_written: bool = False
    in_order: bool = False
    complete: bool = False
    complete_to: str = ""
    retries: int = 0
    swapping: bool = False

    @classmethod
    def load(cls, path: Path) -> Manifest | None:
        """The manifest in `path`, or None if there is none that can be read."""
        try:
            return cls(**orjson.loads(path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    @property
    def content(self) -> bytes:
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2) + b"\n"

    @property
    def untouched(self) -> bool:
        """Whether nothing was written for its batch."""
        return not (self.done or self.failed or self.bad or self.complete or self.after != "0-0")

    def fresh(self) -> Manifest:
        """The same batch with nothing written."""
        return Manifest(self.batch, self.source, self.parameters)


def difference(before: Manifest | BatchStatus, source: str, parameters: Mapping[str, Any]) -> str:
    """Why a batch of `source` with these parameters is not the one before, as far as what is kept of it can tell."""
    if not before.parameters or not parameters:
        return "other lines or other parameters"
    if before.source != source:
        return f"the lines of {before.source}"
    return changes(before.parameters, parameters) or f"the lines of {source} have changed"
