"""Settings of MLX's CUDA backend for rounds of changing sizes; it reads them as it loads.

MLX launches operations as CUDA graphs, and plans a graph for each size of a round and each length of a prompt. One row,
whose rounds have few sizes, gains a fifth by that. Many rows lose as much, so theirs are launched without graphs.

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

NO_GRAPHS = {"MLX_USE_CUDA_GRAPHS": "0"}

MANY = 8
"""So many rows run without graphs."""


def suit_rounds(rows: int, platform: str = sys.platform) -> None:
    """Set MLX up for rounds of up to so many rows, unless the environment says otherwise; call it before anything
    imports MLX.
    """
    if platform == "linux":
        for name, value in (PLANS | NO_GRAPHS if rows >= MANY else PLANS).items():
            os.environ.setdefault(name, value)
