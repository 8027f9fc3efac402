"""Where draftmill keeps its things on this machine: data that must survive, and what can be rebuilt."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def data_dir() -> Path:
    """Folder of what must not be lost (the private Redis). `DRAFTMILL_HOME` overrides it."""
    return _folder("DRAFTMILL_HOME", "Application Support", "XDG_DATA_HOME", ".local/share")


def cache_dir() -> Path:
    """Folder of what can be rebuilt (models). `DRAFTMILL_CACHE` overrides it."""
    return _folder("DRAFTMILL_CACHE", "Caches", "XDG_CACHE_HOME", ".cache")


def _folder(override: str, library: str, xdg: str, fallback: str) -> Path:
    if chosen := os.environ.get(override):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / library / "draftmill"
    return Path(os.environ.get(xdg) or Path.home() / fallback) / "draftmill"
