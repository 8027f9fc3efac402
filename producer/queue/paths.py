"""Where draftmill keeps its things on this machine: data that must survive, and what can be rebuilt."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import platformdirs

from .errors import UserError

APP = "draftmill"


def is_at(path: Path, file: IO[bytes]) -> bool:
    """Whether an open file still is what lies at `path`; else it was removed or replaced."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def data_dir() -> Path:
    """Folder of what must not be lost (the private Redis). `DRAFTMILL_HOME` overrides it."""
    return _folder("DRAFTMILL_HOME", platformdirs.user_data_path, "Application Support")


def cache_dir() -> Path:
    """Folder of what can be rebuilt (models). `DRAFTMILL_CACHE` overrides it."""
    return _folder("DRAFTMILL_CACHE", platformdirs.user_cache_path, "Caches")


def _folder(override: str, usual: Callable[[str], Path], library: str) -> Path:
    """The folder that the variable names, else the usual one of this system.

    On a Mac the usual one follows the XDG variables. Draftmill did not heed them at first: what it has in ~/Library
    stays in use. Raises UserError if all of these lead to a home that nobody knows.
    """
    try:
        if chosen := os.environ.get(override):
            return Path(chosen).expanduser().absolute()
        if sys.platform == "darwin" and (earlier := Path("~/Library", library, APP).expanduser()).is_dir():
            return earlier
        return usual(APP).expanduser()  # platformdirs may leave the ~ where it finds no home
    except RuntimeError:
        raise UserError(f"no home folder is known: set HOME or {override}") from None
