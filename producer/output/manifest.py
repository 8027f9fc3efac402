"""What stands beside OUT: which batch it holds, what was said about the batch, and what OUT itself cannot say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson

from ..input.parameters import changes
from ..queue.batches import BatchStatus


@dataclass
class Manifest:
    """Of which batch OUT holds results. `content` names its lines, whoever runs them; empty if INPUT was not seen.

    `columns` are the kept columns of a table's header, once it is written. `in_order` says that OUT is in input order.
    `token` tells the queue this OUT from others. `told` is the event that others were told last of it.
    """

    batch: str
    content: str = ""
    source: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    columns: list[str] | None = None
    in_order: bool = False
    token: str = ""
    told: str = ""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Manifest:
        """The manifest as a file holds it, which may be of another version and say more or less."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})

    def dump(self) -> bytes:
        """What `read` reads."""
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2) + b"\n"

    def is_of(self, other: Manifest) -> bool:
        """Whether both are of the same lines with the same parameters. Earlier versions had `content` as the batch."""
        return self.batch in (other.batch, other.content) or (self.content != "" and self.content == other.content)


def read(path: Path) -> dict[str, Any] | None:
    """What a manifest says, or None if there is none that can be read."""
    try:
        found = orjson.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("batch"), str) else None


def difference(before: Manifest | BatchStatus, source: str, parameters: Mapping[str, Any]) -> str:
    """Why a batch of `source` with these parameters is not the one before, as far as what is kept of it can tell."""
    if not (before.source and before.parameters and parameters):
        return "other lines or other parameters"
    if before.source != source:
        return f"the lines of {before.source}"
    return changes(before.parameters, parameters) or f"the lines of {source} have changed"
