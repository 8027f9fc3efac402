"""How many cores this machine's GPU has: chips of one name are sold with different numbers of them."""

from __future__ import annotations

import ctypes
import re
import subprocess
from functools import cache

import mlx.core as mx

GROUPS = 4
"""Threadgroups of attention that a core holds at once: its threadgroup memory has room for no more."""

USUAL_MAC, USUAL_CUDA = 16, 128
"""Cores of a GPU that does not tell."""

MULTIPROCESSOR_COUNT = 16
"""The attribute's number in CUDA's driver, which MLX does not hand on."""


def cores() -> int | None:
    """Cores of the Mac's GPU, or multiprocessors of the NVIDIA one; None without a GPU, or where nobody tells."""
    return None if mx.default_device() == mx.cpu else _cores()


def enough_groups() -> int:
    """So many threadgroups keep this machine's GPU busy."""
    return GROUPS * (cores() or (USUAL_MAC if mx.metal.is_available() else USUAL_CUDA))


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
