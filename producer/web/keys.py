"""Who calls: API keys, the users that they stand for, and whether a request is from this machine."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers

from ..queue.errors import UserError, explain_file

VARIABLE = "DRAFTMILL_API_KEY"
NAMED = re.compile(r"([A-Za-z0-9_.@-]+):(.+)")
LOCAL_HOSTS = frozenset(("localhost", "127.0.0.1", "[::1]"))
SHORTEST = 8
"""Characters of a key."""


class Keys:
    """The keys that are accepted, as digests, each with its user."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._users: dict[bytes, str] = {}
        for line in lines:
            named = NAMED.fullmatch(line)
            key = named[2] if named else line
            if len(key) < SHORTEST:
                raise UserError(f"an API key has {len(key)} characters; it needs {SHORTEST} at least")
            digest = _digest(key)
            if digest in self._users:
                raise UserError("an API key is there twice; each user needs a key of their own")
            self._users[digest] = named[1] if named else f"key-{digest.hex()[:8]}"

    def __bool__(self) -> bool:
        return bool(self._users)

    def suffice_for(self, host: str, option: str) -> None:
        """Raises UserError if a server must not listen on `host` because there are none; `option` names their file."""
        if not self._users and not is_loopback(host):
            raise UserError(
                f"to listen on {host} others must show an API key: name a file of keys with {option} or set {VARIABLE}"
            )

    def user(self, key: str) -> str | None:
        """Whose key it is. Digests of equal length are compared, all of them, in constant time."""
        given, found = _digest(key), None
        for digest, user in self._users.items():
            if hmac.compare_digest(digest, given):
                found = user
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read(path: Path | None) -> Keys:
    """The keys of a file, one a line, `KEY` or `NAME:KEY`; without a file that of DRAFTMILL_API_KEY, if it is set."""
    if path is None:
        return Keys(filter(None, [os.environ.get(VARIABLE, "").strip()]))
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except OSError as error:
        raise UserError(explain_file(error, "cannot read", path)) from error
    keys = Keys(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UserError(f"{str(path)!r} has no key; write one a line, as KEY or NAME:KEY")
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_this_machine(headers: Headers) -> bool:
    """Whether a request names this machine itself as its host.

    A page of the web, open in a browser here, could reach a server on the loopback address under a name of its own.
    """
    return re.sub(r":\d+$", "", headers.get("host", "")) in LOCAL_HOSTS
