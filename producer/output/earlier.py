"""Error files as earlier versions named them: `a.errors.jsonl` for `a.jsonl`, and for `a.csv` as well."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from ..input.dataset import BAD_LINE
from ..queue.errors import UserError
from .files import beside, real, size, writing


def adopt_errors(out: Path, errors: Path, manifest: Mapping[str, Any]) -> None:
    """Gives the error file of an earlier version the name `errors`; `manifest` is that version's.

    Raises UserError if another output has written over the failures that it counts.
    """
    earlier = out.with_name(f"{out.stem}.errors.jsonl")
    swapping = manifest.get("swapping")
    if errors.exists() or not earlier.exists() or not (manifest.get("errors_bytes") or swapping):
        return
    with writing(earlier):
        if swapping:  # a new error file was to take its place
            with suppress(FileNotFoundError):
                beside(earlier).replace(real(earlier))
        if _is_of(earlier, manifest):
            earlier.rename(errors)
        elif not manifest["complete"]:  # else OUT itself is whole
            raise UserError(
                f"{str(earlier)!r} does not hold the failures of {str(out)!r}: another output has the same error file; "
                "start over with --force"
            )


def _is_of(path: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the file begins with as many failures and bad lines as the manifest counts, all of its batch."""
    if size(path) < manifest["errors_bytes"]:
        return False
    with path.open("rb") as file:
        raw = list(islice(file, manifest["failed"] + manifest["bad"]))
    return sum(map(len, raw)) == manifest["errors_bytes"] and all(_is_line_of(line, manifest["batch"]) for line in raw)


def _is_line_of(raw: bytes, batch: str) -> bool:
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    if line["error"]["code"] == BAD_LINE:  # of the dataset: it has no job
        return True
    digest = hashlib.sha256(line["custom_id"].encode("utf-8", "surrogatepass")).hexdigest()
    return line["id"] == f"batch_req_{batch}-{digest[:20]}"
