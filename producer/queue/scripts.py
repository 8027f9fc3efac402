"""Loads the Lua scripts. They are sent whole, with EVAL: a Redis that restarted has no script cache."""

from __future__ import annotations

from pathlib import Path

from .wire import MAX_LEASES, WIRE

LUA = Path(__file__).parent / "lua"


def script(name: str) -> str:
    """The text of a script behind `record.lua`, where what reading and ending a job means is written once."""
    constants = f"local WIRE, MOST_LEASES = '{WIRE}', {MAX_LEASES}\n"
    return constants + (LUA / "record.lua").read_text("utf-8") + (LUA / f"{name}.lua").read_text("utf-8")
