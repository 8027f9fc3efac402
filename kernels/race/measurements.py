"""What this machine has measured, kept in JSON files: each machine has its own entry, so a file may serve several."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..gpu.cores import cores
from ..gpu.source import digest

log = logging.getLogger(__name__)


def machine() -> str:
    """What a measurement depends on beside its subject: chip and its cores, MLX, and the kernels themselves."""
    chip, count = mx.device_info().get("device_name", "cpu"), cores()
    return f"{chip}, {f'{count} cores, ' if count else ''}MLX {version('mlx')}, kernels {digest()}"


def read(file: Path) -> dict[str, Any]:
    """Every machine's entry; none if there is no such file, or it is broken."""
    try:
        entries = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}


def known(file: Path, owner: str) -> dict[str, Any]:
    """A machine's entry, by the names of what was measured; empty if there is none, or it is broken."""
    entry = read(file).get(owner)
    return entry if isinstance(entry, dict) else {}


def write(file: Path, owner: str, entry: Any) -> None:
    """Keep a machine's entry beside those of others and of other versions; the file is replaced in one step.

    Where that fails (a full disk), the next start measures again.
    """
    entries = read(file) | {owner: entry}
    new = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(entries, indent=1))
        new.replace(file)
    except OSError as error:
        log.warning("cannot write %s (%s), so the next start measures again", file, error.strerror)
        with suppress(OSError):
            new.unlink(missing_ok=True)
