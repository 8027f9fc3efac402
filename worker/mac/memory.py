"""How short memory is on a Mac, as macOS tells without root, and how much of its own a worker gives back for that."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Literal

log = logging.getLogger("draftmill.worker")

Pressure = Literal["normal", "warning", "critical", "unknown"]
"""Memory pressure, as Activity Monitor shows it in green, yellow and red."""

LEVELS: dict[str, Pressure] = {"1": "normal", "2": "warning", "4": "critical"}
"""What the levels of `kern.memorystatus_vm_pressure_level` mean."""

NAMES = ("kern.memorystatus_vm_pressure_level", "vm.swapusage")
"""What `sysctl -n` is asked for, in this order."""

LEAST = 1 / 8
"""The least that a worker keeps of its rows and of its memory for keys and values."""

SETTLE = 30.0
"""Seconds until pressure is looked at again after memory was given back: macOS needs some to notice."""

CALM = 600.0
"""Seconds without pressure after which a worker takes twice as much again."""

UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}


@dataclass(frozen=True)
class MemoryReading:
    """Memory at one moment: how short it is, and how many bytes are swapped out."""

    pressure: Pressure = "unknown"
    swapped: int | None = None

    @property
    def short(self) -> bool:
        return self.pressure in ("warning", "critical")

    def __str__(self) -> str:
        swapped = "" if self.swapped is None else f", {self.swapped / 1024**3:.1f} GiB swapped out"
        return f"memory pressure {self.pressure}{swapped}"


NOTHING_KNOWN = MemoryReading()


def memory(said: str) -> MemoryReading:
    """What `sysctl -n` means by its two lines about `NAMES`."""
    level, _, swap = said.partition("\n")
    used = re.search(r"used = ([\d.]+)([KMG])", swap)
    return MemoryReading(LEVELS.get(level.strip(), "unknown"), int(float(used[1]) * UNITS[used[2]]) if used else None)


class Relief:
    """How much of its rows and memory a worker should have: half while memory is short, then half of that; and twice as
    much once it has not been short for long.

    Args:
        share: with which it begins.
        now: of a monotonic clock, in seconds.
    """

    def __init__(self, share: float = 1.0, now: float = 0.0) -> None:
        self.share = share
        self._changed, self._short = now - SETTLE, now

    def look(self, reading: MemoryReading, now: float) -> bool:
        """Whether the share is another one now."""
        before = self.share
        if reading.short:
            self._short = now
            if now - self._changed >= SETTLE:
                self.share = max(LEAST, self.share / 2)
        elif now - max(self._short, self._changed) >= CALM:
            self.share = min(1.0, 2 * self.share)
        if self.share == before:
            return False
        self._changed = now
        log.warning("%s: from now on 1/%d of the rows and of the memory for keys and values", reading, 1 / self.share)
        return True
