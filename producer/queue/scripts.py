"""Loads the Lua scripts. They are sent whole, with EVAL: a Redis that restarted has no script cache."""

from __future__ import annotations

from pathlib import Path

LUA = Path(__file__).parent / "lua"


def script(path: Path) -> str:
    """The text of a script behind `record.lua`, where what reading and ending a job means is written once."""
    return (LUA / "record.lua").read_text("utf-8") + path.read_text("utf-8")
