"""How many bytes the pools may take on this machine."""

from __future__ import annotations

import os

import mlx.core as mx

MARGIN = 0.95
"""Of what the device recommends: the rest is for the system, for MLX itself and for what a load leaves behind."""


def default_budget(workspace: int) -> int:
    """Bytes for what rows keep when nobody says: what the device recommends less what is in use and what rounds need.

    On a Mac the recommended size follows `sysctl iogpu.wired_limit_mb`. On a CPU, where the machine's memory is
    everybody's, it is a sixteenth of that.
    """
    if mx.default_device().type == mx.DeviceType.cpu:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 16
    info = mx.device_info()
    limit = int(info.get("max_recommended_working_set_size") or info.get("total_memory") or info["memory_size"])
    return max(0, int(MARGIN * limit) - mx.get_active_memory() - workspace)


def stay_resident() -> None:
    """Wire what the GPU uses: macOS else takes the weights of a worker that waits out of memory. Elsewhere nothing."""
    if mx.metal.is_available():
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
