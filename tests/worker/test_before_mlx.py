"""What comes before MLX: OpenBLAS, which then computes its products, here and in processes that this one starts; and
what is asked of its CUDA backend.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from draftmill.worker import blas
from draftmill.worker.cuda import PLANS, keep_plans

PROGRAM = """
import subprocess, sys
from draftmill.worker import blas
said = blas.preload()
import mlx.core as mx
mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
maps = "print('openblas' in open('/proc/self/maps').read())"
print(said, flush=True)
exec(maps)
subprocess.run([sys.executable, "-c", maps], check=True)
"""


def run(program: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, without a BLAS that the tests preload."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"} | changes
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


needs_openblas = pytest.mark.skipif(
    not blas.wanted() or blas.missing(), reason="only for the CPU backend on Linux with OpenBLAS"
)


@needs_openblas
def test_openblas_is_loaded_here_and_in_child_processes():
    assert run(PROGRAM).stdout.split() == ["None", "True", "True"]


@needs_openblas
def test_openblas_computes_the_products_of_mlx():
    bound = run(PROGRAM, LD_DEBUG="bindings").stderr
    assert re.search(r"libmlx\S* \[0\] to \S*openblas\S* \[0\]: normal symbol `cblas_sgemm'", bound)


@pytest.mark.skipif(not blas.wanted(), reason="only for the CPU backend on Linux")
def test_without_openblas_it_says_what_is_slower(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    said = blas.preload()
    assert said is not None
    assert "apt-get install libopenblas0-pthread" in said


def test_plans_are_kept_unless_somebody_asked_for_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLANS:
        monkeypatch.setenv(name, "")  # so that whatever follows is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLX_CUDA_GRAPH_CACHE_SIZE", "7")
    keep_plans("darwin")
    assert "MLX_CUDA_SDPA_CACHE_SIZE" not in os.environ
    keep_plans("linux")
    assert {name: os.environ[name] for name in PLANS} == PLANS | {"MLX_CUDA_GRAPH_CACHE_SIZE": "7"}
