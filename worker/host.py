"""Facts about this machine for its heartbeats: what it is, how warm it runs and what power it draws, without root.

macOS tells the power to nobody but root; there its operator gives it (`draftmill worker --watts`).
"""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..engine.stats import Stats
from ..producer.queue.leases import UNKNOWN, Pace
from .mac.memory import NAMES, NOTHING_KNOWN, MemoryReading, memory

Thermal = Literal["nominal", "fair", "serious", "critical", "unknown"]
"""Thermal pressure, in the words of macOS's ProcessInfo; from `serious` on the machine is slowed down."""

PRESSURE: tuple[Thermal, ...] = ("nominal", "fair", "serious", "critical", "critical")
"""What the levels of `com.apple.system.thermalpressurelevel` mean: nominal, moderate, heavy, trapping, sleeping."""

READ_EVERY = 10.0
"""Seconds between two readings."""


@dataclass(frozen=True)
class Host:
    """What a machine is. `memory` is in bytes; `watts` is what its operator says it draws at work."""

    name: str
    chip: str
    memory: int
    os: str
    watts: float | None = None

    @classmethod
    def here(cls, name: str | None = None, watts: float | None = None, chip: str | None = None) -> Host:
        """This machine, called `name` or by its host name; `chip` is the accelerator's name where MLX knows it."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(name or host_name(), chip or _chip(), memory, _system(), watts)

    def report(self, reading: Reading) -> dict[str, Any]:
        """What each heartbeat says of a machine that is like this."""
        return {
            "host": self.name,
            "chip": self.chip,
            "memory": self.memory,
            "os": self.os,
            "thermal": reading.thermal,
            "memory_pressure": reading.memory.pressure,
            "swapped": "" if reading.memory.swapped is None else reading.memory.swapped,
            "power_watts": "" if reading.power_watts is None else round(reading.power_watts, 1),
        }


@dataclass(frozen=True)
class Reading:
    """How the machine is at one moment; `power_watts` is None where nobody knows it."""

    thermal: Thermal = "unknown"
    power_watts: float | None = None
    memory: MemoryReading = NOTHING_KNOWN


class Sensors(threading.Thread):
    """Reads the sensors every few seconds, so that whoever asks for the `latest` reading never waits.

    `heard` is called with each reading, on this thread.
    """

    def __init__(self, host: Host) -> None:
        super().__init__(name="sensors", daemon=True)
        self.heard: Callable[[Reading], None] = lambda reading: None
        self.latest = Reading(power_watts=host.watts)
        self._host = host

    def run(self) -> None:
        power = Power(Path("/sys/class"))
        while True:
            watts = self._host.watts
            self.latest = Reading(_thermal(), watts if watts is not None else power.watts(), _memory())
            self.heard(self.latest)
            time.sleep(READ_EVERY)


class Work(NamedTuple):
    """What a worker has done by some moment: `tokens` that it handled, `joules` that its machine drew meanwhile."""

    joules: float
    tokens: int


class Meter:
    """What a worker generates, by the `stats` of its engine, and what its machine draws meanwhile."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._tokens: deque[tuple[float, int]] = deque(maxlen=11)
        self._last: tuple[float, float, float | None] = time.monotonic(), 0.0, None  # when, joules by then, watts

    def beat(self, watts: float | None, at_work: bool) -> float:
        """The machine draws so many watts, which count while jobs are in flight; returns joules since the last beat."""
        before, drawn, _ = self._last
        now = time.monotonic()
        joules = (watts or 0.0) * (now - before) if self._tokens and at_work else 0.0
        self._tokens.append((now, self._stats.generated_tokens))
        self._last = now, drawn + joules, watts
        return joules

    @property
    def joules(self) -> float:
        """Until the last beat."""
        return self._last[1]

    @property
    def now(self) -> Work:
        """All until now: since the last beat at the power that was known then."""
        beat, joules, watts = self._last
        return Work(joules + (watts or 0.0) * (time.monotonic() - beat), self._stats.handled_tokens)

    def share(self, before: Work, tokens: int) -> float | None:
        """Joules since a moment, of so many `tokens` of those that were handled since; None if the power is unknown."""
        if self._last[2] is None:
            return None
        joules, handled = (after - then for after, then in zip(self.now, before, strict=True))
        return max(0.0, joules) * min(1.0, tokens / max(1, handled))

    @property
    def tokens_per_second(self) -> float:
        """Over the last ten beats."""
        (before, then), (after, latest) = self._tokens[0], self._tokens[-1]
        return round((latest - then) / (after - before), 1) if after > before else 0


class RowSpeed:
    """How fast the rows of this worker are, over about its last `MEMORY` jobs, and how that compares with its fleet.

    `rows` is how many take jobs, `beside_fleet` what `JobQueue.compare` said. The worker counts here, its heartbeat
    compares, its courier asks.
    """

    MEMORY = 50

    def __init__(self) -> None:
        self.rows = 0
        self.beside_fleet = 0.0, 0.0
        self._before = 0, 0
        self._tokens = self._row_seconds = self._sizes = self._answers = self._jobs = 0.0

    def observe_round(self, seconds: float, stats: Stats) -> None:
        """After a round."""
        tokens, rows = self._before
        self._before = stats.generated_tokens, stats.rows
        self._tokens += stats.generated_tokens - tokens
        self._row_seconds += seconds * (stats.rows - rows)

    def observe_job(self, size: int, tokens: int) -> None:
        """After a job that asked for tokens up to its `size`, and got so many."""
        self._sizes += size
        self._answers += tokens
        self._jobs += 1
        if self._jobs > self.MEMORY:
            kept = self.MEMORY / self._jobs
            self._tokens, self._row_seconds = kept * self._tokens, kept * self._row_seconds
            self._sizes, self._answers, self._jobs = kept * self._sizes, kept * self._answers, self.MEMORY

    @property
    def tokens_per_second(self) -> float:
        """Of one row; 0 until a job has ended."""
        return self._tokens / self._row_seconds if self._jobs and self._row_seconds else 0.0

    @property
    def pace(self) -> Pace:
        if not self.tokens_per_second:
            return UNKNOWN
        seconds = self._answers / self._jobs / self.tokens_per_second  # rows have spent more, on jobs that still run
        return Pace(*self.beside_fleet, self._sizes / self._jobs, seconds)


class Power:
    """What Linux says that this machine draws: its processor packages (RAPL), else the sum of its power sensors."""

    def __init__(self, classes: Path) -> None:
        self._packages = sorted(classes.glob("powercap/intel-rapl:?/energy_uj"))
        self._sensors = sorted(classes.glob("hwmon/hwmon*/power1_average")) or sorted(
            classes.glob("hwmon/hwmon*/power1_input")
        )
        self._before: tuple[float, int] | None = None

    def watts(self) -> float | None:
        """Mean power since the last call, or the power now; None if it cannot be known (yet)."""
        if energy := _numbers(self._packages):
            before, self._before = self._before, (time.monotonic(), sum(energy))
            if before is None or self._before[1] < before[1]:  # the first look, or the counter began anew
                return None
            return (self._before[1] - before[1]) / 1e6 / (self._before[0] - before[0])
        power = _numbers(self._sensors)
        return sum(power) / 1e6 if power else None


def host_name() -> str:
    """This machine's name without its domain, in letters that names of workers may have."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname().partition(".")[0]) or "worker"


@cache
def _chip() -> str:
    if sys.platform == "darwin":
        return _said("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


@cache
def _system() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _thermal() -> Thermal:
    if sys.platform == "darwin":
        return pressure(_said("/usr/bin/notifyutil", "-g", "com.apple.system.thermalpressurelevel"))
    return hottest_zone(Path("/sys/class/thermal"))


def _memory() -> MemoryReading:
    return memory(_said("/usr/sbin/sysctl", "-n", *NAMES)) if sys.platform == "darwin" else NOTHING_KNOWN


def boot() -> str:
    """Which boot of this machine this is, in some words that another boot does not have."""
    if sys.platform == "darwin":
        return _said("/usr/sbin/sysctl", "-n", "kern.boottime").partition("}")[0]
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def pressure(said: str) -> Thermal:
    """What `notifyutil` means: the key's name and its level."""
    level = said.rpartition(" ")[2]
    return PRESSURE[min(int(level), len(PRESSURE) - 1)] if level.isdigit() else "unknown"


def hottest_zone(zones: Path) -> Thermal:
    """The worst of Linux's thermal zones: past its critical, its hot or its passive trip point, or below all."""
    worst: list[int] = []
    for zone in zones.glob("thermal_zone*"):
        for temperature in _numbers([zone / "temp"]):
            worst.append(0)
            for trip in zone.glob("trip_point_*_type"):
                (limit,) = _numbers([zone / trip.name.replace("_type", "_temp")]) or [0]
                if 0 < limit <= temperature:
                    worst.append({"passive": 1, "hot": 2, "critical": 3}.get(trip.read_text().strip(), 0))
    return PRESSURE[max(worst)] if worst else "unknown"


def _numbers(files: list[Path]) -> list[int]:
    """What those of `files` hold that can be read."""
    found = []
    for file in files:
        try:
            found.append(int(file.read_text()))
        except (OSError, ValueError):  # only root may read it, or the sensor is off
            continue
    return found


def _said(*command: str) -> str:
    """The output of a command, or nothing if it fails or is not there.

    With a whole path and `close_fds=False` Python does not fork on macOS, which a process that uses Metal must not.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, close_fds=False).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
