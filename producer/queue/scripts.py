"""Loads the Lua scripts. They are sent whole, with EVAL: a Redis that restarted has no script cache."""

from __future__ import annotations

import re
from pathlib import Path

from .wire import MAX_LEASES, WIRE

LUA = Path(__file__).parent / "lua"


def script(name: str) -> str:
    """The text of a script behind `record.lua`, where what reading and ending a job means is written once."""
    constants = f"local WIRE, MOST_LEASES = '{WIRE}', {MAX_LEASES}\n"
    text = constants + "".join((LUA / f"{part}.lua").read_text("utf-8") for part in ("record", name))
    return re.sub(r"(?m)^\s*(--.*)?\n|^ +", "", text)  # Redis reads and hashes it each time; comments are for us
