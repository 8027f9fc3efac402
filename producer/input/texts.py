"""A folder of text files as a dataset: a row for each file, with the columns `id` (its name), `path` and `text`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import orjson

from ..queue.errors import UserError, explain_file, is_utf8, readable
from ..queue.wire import MOST_BODY_BYTES
from .request.faults import Fault

PATTERN = "*.txt"


class TextFiles:
    """The files of `folder` whose names match `pattern`, in the order of their names, as they are now.

    They are copied to a temporary file, because people put files into such folders and take them away at any time, and
    a dataset must be the same whenever it is read.
    """

    def __init__(self, folder: Path, pattern: str = PATTERN) -> None:
        self._copy = tempfile.TemporaryFile()  # noqa: SIM115 -- the source keeps it
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                self._copy.write(orjson.dumps(_row(path)) + b"\n")
        if not self._copy.tell():
            raise UserError(
                f"cannot read {str(folder)!r}: a folder without {pattern} files, and no saved dataset (no state.json)"
            )

    def rows(self, _: Set[str] | None = None, /) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
        self._copy.seek(0)
        for number, line in enumerate(self._copy, 1):
            row = orjson.loads(line)
            yield number, Fault(row["fault"]) if "fault" in row else row


def _row(path: Path) -> dict[str, str]:
    """A file as a row, or why it cannot be one."""
    if not is_utf8(str(path)):
        return {"fault": f"the name {readable(path.name)} is not UTF-8; rename the file"}
    try:
        text = path.read_bytes() if path.stat().st_size <= MOST_BODY_BYTES else None
        if text is None:
            return {"fault": f"{path.name} is longer than {MOST_BODY_BYTES:,} bytes"}
        return {"id": path.name, "path": str(path), "text": text.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        return {"fault": f"{path.name} is not UTF-8 at byte {error.start}"}
    except OSError as error:
        return {"fault": explain_file(error, "cannot read", path)}
