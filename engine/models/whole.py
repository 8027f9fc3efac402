"""Whether files of weights are all there, told from their headers before MLX reads them.

MLX reads lazily: where a file is cut off, an evaluation fails. MLX 0.32 may go on counting what failed as running, and
a later evaluation of the same process then waits for it without end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .boxed import ModelError


def refuse_cut_off(files: Iterable[Path]) -> None:
    """Raise ModelError if a safetensors file ends before its weights do. What is no such file is left to MLX."""
    for file in files:
        if not file.is_file():
            continue
        size, needed = file.stat().st_size, bytes_needed(file)
        if size < needed:
            raise ModelError(f"{file} is cut off: it has {size:,} bytes of {needed:,}; fetch it again")


def bytes_needed(file: Path) -> int:
    """The size that a safetensors file must have, by its header; 0 if it has none that can be read."""
    with file.open("rb") as stored:
        length = int.from_bytes(stored.read(8), "little")
        try:
            header: Any = json.loads(stored.read(min(length, file.stat().st_size)))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return 8 + length if length < 2**40 else 0
    return 8 + length + max(ends, default=0)
