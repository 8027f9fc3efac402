"""What workers generate, under random load: whether every row gets the tokens of mlx-lm."""

from __future__ import annotations

import os
import subprocess
import sys

from draftmill.worker import blas
from tests.farm.figure import Figure


def tokens(full: bool) -> Figure:
    """Seeds of random load over small models; what is wrong goes to stderr, with the command that repeats it."""
    library = blas.library() if blas.wanted() else None
    one_thread = {"OPENBLAS_NUM_THREADS": "1"}  # the models are so small that a second one only waits
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.fuzz", "--count", "200" if full else "2"],
        env=os.environ | one_thread | ({"LD_PRELOAD": library} if library else {}),
        stdout=subprocess.PIPE,
        text=True,
    )
    *faults, tally = done.stdout.splitlines() or ["it ended without a word"]
    print(*faults, sep="\n", file=sys.stderr, end="\n" if faults else "")
    return Figure(tally, done.returncode == 0)
