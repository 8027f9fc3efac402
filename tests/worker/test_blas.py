"""OpenBLAS is preloaded by starting the process again, once, with the same arguments."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from draftmill.worker import blas

PROGRAM = """
import os, sys
from draftmill.worker import blas
print("start", os.getpid(), flush=True)
said = blas.preload()
loaded = "openblas" in open("/proc/self/maps").read()
print("end", os.getpid(), loaded, said, sys.argv[1:])
"""


@pytest.mark.skipif(not blas.wanted() or blas.missing(), reason="only for the CPU backend on Linux with OpenBLAS")
def test_the_process_starts_again_with_openblas():
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [sys.executable, "-c", PROGRAM, "a b", "--c"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second, end = done.stdout.splitlines()
    assert first == second
    assert end == f"end {first.split()[1]} True None ['a b', '--c']"


@pytest.mark.skipif(not blas.wanted(), reason="only for the CPU backend on Linux")
def test_without_openblas_it_says_what_is_slower(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    said = blas.preload()
    assert said is not None
    assert "apt-get install libopenblas0-pthread" in said
