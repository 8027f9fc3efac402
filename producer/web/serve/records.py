"""Objects of the API as JSON files, one each, replaced whole: a kill at any moment leaves the old or the new one."""

from __future__ import annotations

import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import orjson

from ...output.files import replacing
from ...queue.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Record(ABC):
    """What every object has: an id, the user who owns it, and when it was made (Unix seconds)."""

    id: str
    user: str
    created: float = field(default_factory=time.time)

    @abstractmethod
    def public(self) -> dict[str, Any]:
        """The object as the API shows it."""


R = TypeVar("R", bound=Record)


def new_id(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(12)}"


class Shelf(Generic[R]):
    """All records of a kind, in memory and in a folder; usable from any thread.

    Fields of a later version are ignored and stay in the files, so that going back to this version loses nothing.
    """

    def __init__(self, folder: Path, kind: type[R]) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._records: dict[str, R] = {}
        self._unknown: dict[str, dict[str, Any]] = {}
        for path in folder.glob("*.json"):
            record, unknown = _read(path, kind)
            self._records[record.id] = record
            self._unknown[record.id] = unknown

    def __iter__(self) -> Iterator[R]:
        with self._lock:
            return iter(list(self._records.values()))

    def __contains__(self, id: str) -> bool:
        return id in self._records

    def __getitem__(self, id: str) -> R:
        return self._records[id]

    def find(self, id: str, user: str) -> R | None:
        """The user's record of that id."""
        record = self._records.get(id)
        return record if record and record.user == user else None

    def put(self, record: R) -> None:
        """Adds or replaces a record; it is on the disk when this returns."""
        with self._lock:
            with replacing(self._path(record.id)) as file:
                file.write(orjson.dumps(self._unknown.get(record.id, {}) | asdict(record)))
            self._records[record.id] = record

    def show(self, id: str, **changes: Any) -> R:
        """Replaces fields of a record in memory only: what can be counted again need not be on the disk."""
        with self._lock:
            record = self._records[id] = replace(self._records[id], **changes)
            return record

    def update(self, id: str, how: Callable[[R], R]) -> R:
        """Replaces a record by what `how` makes of it; nobody else changes it meanwhile."""
        with self._lock:
            before = self._records[id]
            record = how(before)
            if record != before:
                self.put(record)
            return record

    def remove(self, id: str) -> None:
        with self._lock:
            self._path(id).unlink(missing_ok=True)
            self._records.pop(id, None)
            self._unknown.pop(id, None)

    def _path(self, id: str) -> Path:
        return self._folder / f"{id}.json"


def _read(path: Path, kind: type[R]) -> tuple[R, dict[str, Any]]:
    """The record in a file, and those of its fields that this version does not know. Raises UserError."""
    try:
        found = orjson.loads(path.read_bytes())
        own = {known.name: found.pop(known.name) for known in fields(kind) if known.name in found}
        record = kind(**own)
    except (orjson.JSONDecodeError, AttributeError, TypeError):
        raise UserError(f"the record {str(path)!r} is damaged; restore it from a copy, or move it away") from None
    return record, found
