"""Loads and runs the Lua scripts.

Redis is asked for a script by its SHA-1, in 40 bytes. A Redis that does not have it, because it restarted or somebody
flushed its cache, says so and has done nothing; then the script is sent whole, and Redis keeps it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import redis as redis_py
from redis.exceptions import NoScriptError

from .wire import BELL_SECONDS, FUNCTION, MAX_LEASES, RESULT_TTL, WIRE, JsonSerializer

LUA = Path(__file__).parent / "lua"


@dataclass(frozen=True)
class Script:
    """A script as Redis has it, without comments: those are for us."""

    text: str

    @cached_property
    def sha(self) -> str:
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def script(name: str, shared: Sequence[str] = ("clock", "turns", "gather", "record")) -> Script:
    """A script of the queue behind what it shares with others. Redis makes all functions of that anew at each call.

    Scripts about jobs gather what they write, so something must be done at their end: they become a function that
    `finish.lua` calls.
    """
    constants = (
        f"local WIRE, MOST_LEASES, BELL_SECONDS = '{WIRE}', {MAX_LEASES}, {BELL_SECONDS}\n"
        f"local NO_BODY = '{JsonSerializer.dumps((FUNCTION, None, (), {})).decode()}'\n"
    )
    text = constants + "".join(_code(f"shared/{each}") for each in shared)
    if "record" not in shared:
        return Script(text + _code(name))
    return Script(f"{text}local function main()\n{_code(name)}end\n{_code('shared/finish')}")


def lone_script(name: str) -> Script:
    """A script that shares nothing."""
    return Script(_code(name))


def _code(name: str) -> str:
    """A file of Lua without comments, indentation and empty lines; no string in these files contains two dashes."""
    code = re.sub(r"(?m) *--.*$|^ +", "", (LUA / f"{name}.lua").read_text("utf-8"))
    return re.sub(r"\n+", "\n", code)


def rq_now() -> str:
    """This machine's time as RQ writes it; for display only, no decision hangs on it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def run(redis: redis_py.Redis, script: Script, *arguments: Any) -> Any:
    """What the script answers; `arguments` are those behind the two that all have."""
    return call(redis, script, *_head(), *arguments)


def call(redis: redis_py.Redis, script: Script, *arguments: Any) -> Any:
    """What the script answers to exactly these arguments."""
    try:
        return redis.evalsha(script.sha, 0, *arguments)
    except NoScriptError:
        return redis.eval(script.text, 0, *arguments)


def run_all(redis: redis_py.Redis, calls: Sequence[tuple[Script, tuple[Any, ...]]]) -> list[Any]:
    """The answers to several calls in one round trip, each an answer as of `run` or an error that Redis gave.

    Raises:
        RedisError: the connection failed; any of them may have run.
    """
    head = _head()
    with redis.pipeline(transaction=False) as pipe:
        for script, arguments in calls:
            pipe.evalsha(script.sha, 0, *head, *arguments)
        replies = pipe.execute(raise_on_error=False)
        unknown = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        for place in unknown:
            script, arguments = calls[place]
            pipe.eval(script.text, 0, *head, *arguments)
        for place, reply in zip(unknown, pipe.execute(raise_on_error=False), strict=True):
            replies[place] = reply
    return replies


def _head() -> tuple[str, str]:
    return rq_now(), str(RESULT_TTL)
