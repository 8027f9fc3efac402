"""How many cores this machine's GPU has: chips of one name are sold with different numbers of them."""

from __future__ import annotations

import ctypes
import re
import subprocess
from functools import cache

import mlx.core as mx

WAVES = 4
"""Work is split for so many waves at most: the more there are, the less there is to win."""

USUAL_MAC, USUAL_CUDA = 16, 128
"""Cores of a GPU that does not tell."""

MULTIPROCESSOR_COUNT = 16
"""The attribute's number in CUDA's driver, which MLX does not hand on."""


def cores() -> int | None:
    """Cores of the Mac's GPU, or multiprocessors of the NVIDIA one; None without a GPU, or where nobody tells."""
    return None if mx.default_device() == mx.cpu else _cores()


def wave(held: int) -> int:
    """Threadgroups that this machine's GPU runs at a time if a core holds so many."""
    return held * (cores() or (USUAL_MAC if mx.metal.is_available() else USUAL_CUDA))


def splits(groups: int, most: int, wave: int) -> int:
    """Into how many parts, `most` at the most, to split the work of so many threadgroups, which run in waves.

    A wave takes as long as one threadgroup. So it is the number with the fewest waves for its size; of equal ones the
    smallest, because parts must be put together again.
    """
    tried = range(1, max(1, min(most, WAVES * wave // groups)) + 1)
    return min(tried, key=lambda parts: -(-groups * parts // wave) / parts)


@cache
def _cores() -> int | None:
    return cores_of_mac(_registry()) if mx.metal.is_available() else _cores_of_cuda()


def cores_of_mac(registry: str) -> int | None:
    """The cores that macOS's registry names, as `ioreg` prints it."""
    found = re.search(r'"gpu-core-count" = (\d+)', registry)
    return int(found[1]) if found else None


def _registry() -> str:
    command = ["/usr/sbin/ioreg", "-rc", "AGXAccelerator"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""


def _cores_of_cuda() -> int | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device = ctypes.c_int(), ctypes.c_int()
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetAttribute(ctypes.byref(count), MULTIPROCESSOR_COUNT, device)
    )
    return None if failed else count.value
