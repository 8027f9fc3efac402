"""Has MLX's CUDA backend keep what it has planned. It plans each size of a round and each length of a prompt.

MLX keeps 400 graphs and 256 plans of attention. When twice as many were new it takes that for a mistake, which it
raises in the middle of a round. A worker meets more sizes than that in a night.
"""

from __future__ import annotations

import os
import sys

PLANS = {
    "MLX_CUDA_GRAPH_CACHE_SIZE": "4096",
    "MLX_CUDA_SDPA_CACHE_SIZE": "4096",
    "MLX_ENABLE_CACHE_THRASHING_CHECK": "0",
}


def keep_plans(platform: str = sys.platform) -> None:
    """Ask MLX for it, unless somebody has asked for something else; call it before anything imports MLX."""
    if platform == "linux":
        for name, value in PLANS.items():
            os.environ.setdefault(name, value)
