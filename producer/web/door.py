"""The door of a server: which keys open it, and how long an address waits that has shown too many wrong ones."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from .keys import Keys

FREE = 5
"""Wrong keys of an address in MINUTE seconds that cost it nothing."""
MINUTE = 60
FIRST_WAIT, LONGEST_WAIT = 4, 300
"""Seconds that an address waits after that, doubled with each further wrong key."""
MEMORY = 3600
"""Seconds after which the wrong keys of an address that had to wait are forgotten."""
MOST = 10_000
"""Addresses that are remembered, those of the latest tries."""


class Closed(Exception):
    """The key is not looked at: too many wrong ones came from that address. It may try again in `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"Too many wrong keys came from this address; try again in {seconds} seconds.")
        self.seconds = seconds


@dataclass(frozen=True)
class Wrong:
    """The wrong keys of one address: how many, when the first and the last came, until when no other is looked at."""

    count: int
    first: float
    last: float
    until: float

    def is_over(self, now: float) -> bool:
        return now - self.first > MINUTE if self.count < FREE else now - self.last > MEMORY


class Door:
    """Knows whose a key is, and makes an address that guesses wait.

    While it waits, a key that it has shown before and that was right opens as ever; no other does, right or wrong, for
    else its guesses would be answered as fast as they come.
    """

    def __init__(self, keys: Keys, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys, self._clock = keys, clock
        self._wrong: OrderedDict[str, Wrong] = OrderedDict()
        self._right: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    @property
    def needs_key(self) -> bool:
        return bool(self._keys)

    def user(self, key: str, address: str) -> str | None:
        """Whose key it is; None for a wrong one. Raises Closed."""
        now, network = self._clock(), _network(address)
        shown = network, hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        before = self._wrong.get(network)
        if before and now < before.until and shown not in self._right:
            raise Closed(math.ceil(before.until - now))
        user = self._keys.user(key)
        if user is None:
            _remember(self._wrong, network, _one_more(before, now))
        else:
            _remember(self._right, shown, None)
        return user


def _one_more(before: Wrong | None, now: float) -> Wrong:
    if before is None or before.is_over(now):
        return Wrong(1, now, now, now)
    count = before.count + 1
    wait = 0 if count < FREE else min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(count - FREE, 16))
    return Wrong(count, before.first, now, now + wait)


def _remember(memory: OrderedDict[Any, Any], name: Hashable, what: object) -> None:
    memory[name] = what
    memory.move_to_end(name)
    if len(memory) > MOST:
        memory.popitem(last=False)


def _network(address: str) -> str:
    """An IPv4 address, or the network of an IPv6 one: whoever has one of its addresses has all 2**64."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        mapped = found.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return str(found)
