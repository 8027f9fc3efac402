"""How many bytes the pools may take on this machine."""

from __future__ import annotations

import os
import re
import subprocess

import mlx.core as mx

MARGIN = 0.95
"""Of what the device recommends: the rest is for the system, for MLX itself and for what a load leaves behind."""


def default_budget(workspace: int) -> int:
    """Bytes for what rows keep when nobody says: what the device recommends less what is in use and what rounds need.

    On a Mac the recommended size follows `sysctl iogpu.wired_limit_mb`, and other programs keep what they have. On a
    CPU, where the machine's memory is everybody's, it is a sixteenth of that.
    """
    if mx.default_device().type == mx.DeviceType.cpu:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 16
    spare = int(MARGIN * device_limit()) - mx.get_active_memory()
    if mx.metal.is_available() and (left := left_by_others()):
        spare = min(spare, left)
    return max(0, spare - workspace)


def device_limit() -> int:
    """Bytes that a program may use of the GPU's memory, as the device recommends."""
    info = mx.device_info()
    return int(info.get("max_recommended_working_set_size") or info.get("total_memory") or info["memory_size"])


def recommended(memory: int) -> int:
    """What macOS recommends on a Mac with so many bytes unless `sysctl iogpu.wired_limit_mb` says more: two thirds, or
    three quarters from 36 GiB on.
    """
    return memory * 2 // 3 if memory < 36 << 30 else memory * 3 // 4


def left_by_others() -> int | None:
    """Bytes that macOS could give without taking any from programs that run; None where it does not say."""
    try:
        return reclaimable(subprocess.run(["vm_stat"], capture_output=True, text=True, check=True, timeout=10).stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def reclaimable(statistics: str) -> int:
    """Bytes in pages that are free, or that nobody has used for a while, as `vm_stat` tells.

    Raises:
        ValueError: that is not what it tells.
    """
    size = re.search(r"page size of (\d+) bytes", statistics)
    pages = dict(re.findall(r"^Pages (\w[\w ]*):\s+(\d+)\.", statistics, re.MULTILINE))
    if not size or "free" not in pages:
        raise ValueError("not the output of vm_stat")
    return int(size[1]) * sum(int(pages.get(kind, 0)) for kind in ("free", "inactive", "speculative"))


def stay_resident() -> None:
    """Wire what the GPU uses: macOS else takes the weights of a worker that waits out of memory. Elsewhere nothing."""
    if mx.metal.is_available():
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
