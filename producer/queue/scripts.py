"""Loads and runs the Lua scripts. They are sent whole, with EVAL: a Redis that restarted has no script cache."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis as redis_py

from .wire import MAX_LEASES, RESULT_TTL, WIRE

LUA = Path(__file__).parent / "lua"


def script(name: str) -> str:
    """The text of a script behind `record.lua`, where what reading and ending a job means is written once."""
    constants = f"local WIRE, MOST_LEASES = '{WIRE}', {MAX_LEASES}\n"
    text = constants + "".join((LUA / f"{part}.lua").read_text("utf-8") for part in ("record", name))
    return re.sub(r"(?m)^\s*(--.*)?\n|^ +", "", text)  # Redis reads and hashes it each time; comments are for us


def rq_now() -> str:
    """This machine's time as RQ writes it; for display only, no decision hangs on it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def run(redis: redis_py.Redis, text: str, *arguments: Any) -> Any:
    """What the script answers; `arguments` are those behind the two that all have."""
    return redis.eval(text, 0, rq_now(), str(RESULT_TTL), *arguments)
