"""Parts of the self-test in processes of their own: what a check finds comes through, even that its process died."""

from __future__ import annotations

import sys

import pytest

from draftmill.engine.selftest.parts import together

SCRIPT = """
import os, sys
from draftmill.engine.selftest.check import Check, Skipped
from draftmill.engine.selftest.parts import tell

def die():
    print("compiling", flush=True)
    os.write(2, b"MLX: the GPU gave up\\n")
    os.abort()

def leave():
    sys.exit(3)

def skip():
    raise Skipped("no GPU")

def checks():
    print("chatter that is no finding")
    yield Check("first", lambda: "12 agree")
    yield Check("second", {"dies": die, "leaves": leave}.get(name, skip), judged=False)
    yield Check("third", lambda: "never reached")

pipe, name = sys.argv[1:]
tell(checks, int(pipe))
"""
PYTHON = (sys.executable, "-c", SCRIPT)


def test_findings_come_in_order_and_nothing_that_is_printed_gets_between() -> None:
    with together(["sound"], [], PYTHON) as (part,):
        found = [(finding.check, finding.verdict, finding.found) for finding in part.findings()]
    assert found == [
        ("first", "ok", "12 agree"),
        ("second", "skipped", "no GPU"),
        ("third", "ok", "never reached"),
    ]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("dies", "was ended by SIGABRT: MLX: the GPU gave up"),
        ("leaves", "ended with code 3: chatter that is no finding"),
    ],
)
def test_a_check_in_which_its_process_ends_is_wrong_and_other_parts_go_on(name: str, how: str) -> None:
    with together([name, "sound"], [], PYTHON) as parts:
        dying, sound = ([(finding.check, finding.verdict, finding.found) for finding in p.findings()] for p in parts)
    assert dying == [("first", "ok", "12 agree"), ("second", "wrong", f"its process {how}")]
    assert len(sound) == 3


def test_what_still_runs_ends_with_the_self_test() -> None:
    endless = (sys.executable, "-c", "import time; time.sleep(600)")
    with together(["endless"], [], endless) as (part,):
        pass
    assert part.process.returncode == -9
