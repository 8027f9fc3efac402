"""The parameters that a batch's id derives from, kept so that a changed one can be named.

They are shown to everybody who may see a batch, and so hold no text of a prompt: words are kept as a digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

NOT_IN_ID = frozenset({"strict", "max_seconds", "dry_run", "format", "drafts"})
"""Options of INPUT that do not make it another batch."""
LARGEST = 2**63 - 1
"""The largest integer that is kept as a number: JSON as batches and manifests hold it has 64 bits."""


def of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a command line gave, by the names of its options, as the batch and its manifest keep it."""
    return {name: _kept(name, value) for name, value in sorted(given.items()) if _matters(name, value)}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """How `after` differs from `before`: `--max-tokens was 64, is 128; --template has changed`, or empty."""
    names = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    return "; ".join(_change(name, before.get(name), after.get(name)) for name in names)


def _matters(name: str, value: Any) -> bool:
    return name not in NOT_IN_ID and value is not None and (value is not False or name == "thinking") and value != ()


def _kept(name: str, value: Any) -> Any:
    if isinstance(value, int) and abs(value) > LARGEST:
        return str(value)
    if isinstance(value, (int, float)) or name in ("pair", "adapter"):
        return value
    if name == "keep":
        return list(value)
    return f"sha256:{hashlib.sha256(orjson.dumps(value, default=str)).hexdigest()[:16]}"


def _change(name: str, before: Any, after: Any) -> str:
    option = f"--{name.replace('_', '-')}"
    if any(str(value).startswith("sha256:") for value in (before, after)):
        return f"{option} has changed"
    return f"{option} was {_shown(before)}, is {_shown(after)}"


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
