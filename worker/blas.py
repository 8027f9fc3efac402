"""Loads OpenBLAS before MLX on Linux, where MLX's CPU backend has a reference BLAS that is up to 40 times slower.

`python -m draftmill.worker.blas` prints what to put into LD_PRELOAD (an empty line if nothing helps).
"""

from __future__ import annotations

import ctypes.util
import os
import sys
from importlib import metadata

CUDA_WHEELS = ("mlx-cuda-12", "mlx-cuda-13")

SLOW = (
    "OpenBLAS is not installed: on this CPU a prompt of 100 tokens takes about 24 s instead of 0.6 s, "
    "and a generated token 2 times as long; install it with `apt-get install libopenblas0-pthread`"
)


def preload() -> str | None:
    """Load OpenBLAS if that helps; call it before anything imports MLX.

    Returns what is slower and how to change that if OpenBLAS is not installed, else None. The dynamic linker then finds
    OpenBLAS's functions before those of MLX's own library. Processes that this one starts preload it, too. OpenBLAS
    takes all cores, or as many as OPENBLAS_NUM_THREADS says.
    """
    if not wanted() or preloaded():
        return None
    name = library()
    if name is None:
        return SLOW
    ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
    os.environ["LD_PRELOAD"] = " ".join(filter(None, [name, os.environ.get("LD_PRELOAD")]))
    return None


def wanted() -> bool:
    """Whether MLX computes on the CPU through the reference BLAS of its Linux wheel."""
    return sys.platform == "linux" and _installed("mlx-cpu") and not any(map(_installed, CUDA_WHEELS))


def preloaded() -> bool:
    return "openblas" in os.environ.get("LD_PRELOAD", "")


def missing() -> bool:
    """Whether OpenBLAS would help but is not installed."""
    return wanted() and library() is None


def library() -> str | None:
    """OpenBLAS's name for the dynamic linker, if it is installed."""
    return ctypes.util.find_library("openblas")


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    print((wanted() and library()) or "")
