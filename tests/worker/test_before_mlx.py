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
from draftmill.worker.cuda import MANY, NO_GRAPHS, PLANS, suit_rounds

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


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of MLX's settings; whatever a test makes of them is undone."""
    for name in PLANS | NO_GRAPHS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("unset")
def test_plans_are_kept_unless_somebody_asked_for_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_CUDA_GRAPH_CACHE_SIZE", "7")
    suit_rounds(1, "darwin")
    assert "MLX_CUDA_SDPA_CACHE_SIZE" not in os.environ
    suit_rounds(1, "linux")
    assert {name: os.environ[name] for name in PLANS} == PLANS | {"MLX_CUDA_GRAPH_CACHE_SIZE": "7"}


@pytest.mark.usefixtures("unset")
def test_many_rows_run_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    suit_rounds(MANY - 1, "linux")
    assert "MLX_USE_CUDA_GRAPHS" not in os.environ
    suit_rounds(MANY, "linux")
    assert os.environ["MLX_USE_CUDA_GRAPHS"] == "0"
    monkeypatch.setenv("MLX_USE_CUDA_GRAPHS", "1")
    suit_rounds(MANY, "linux")
    assert os.environ["MLX_USE_CUDA_GRAPHS"] == "1"
