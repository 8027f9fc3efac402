"""Error files as earlier versions named them: `a.errors.jsonl` for `a.jsonl`, and for `a.csv` as well."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from pathlib import Path

import orjson

from ..queue.errors import UserError
from ..queue.wire import job_id
from .files import beside, real, size, writing
from .manifest import Manifest


def adopt_errors(out: Path, errors: Path, found: Manifest) -> bool:
    """Gives the error file of an earlier version the name `errors`; says whether there was one.

    Raises UserError if another output has written over the failures that `found` counts.
    """
    earlier = out.with_name(f"{out.stem}.errors.jsonl")
    if errors.exists() or not earlier.exists() or not (found.errors_bytes or found.swapping):
        return False
    with writing(earlier):
        if found.swapping:
            with suppress(FileNotFoundError):
                beside(earlier).replace(real(earlier))
        if not _is_of(earlier, found):
            if found.complete:  # OUT itself is whole
                return False
            raise UserError(
                f"{str(earlier)!r} does not hold the failures of {str(out)!r}: another output has the same error file; "
                "start over with --force"
            )
        earlier.rename(errors)
    return True


def _is_of(path: Path, found: Manifest) -> bool:
    """Whether the file begins with as many failures and bad lines as the manifest counts, all of its batch."""
    if size(path) < found.errors_bytes:
        return False
    with path.open("rb") as file:
        raw = list(islice(file, found.failed + found.bad))
    return sum(map(len, raw)) == found.errors_bytes and all(_is_line_of(line, found.batch) for line in raw)


def _is_line_of(raw: bytes, batch: str) -> bool:
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    if line["error"]["code"] == "invalid_line":  # of the dataset: it has no job
        return True
    return line["id"] == f"batch_req_{job_id(batch, line['custom_id'])}"
