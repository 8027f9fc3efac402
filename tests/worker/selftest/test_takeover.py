"""The self-test's killed worker: what another one did not take over, or did twice, is found."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from threading import Event, Timer

import pytest

from draftmill.engine.selftest.check import Finding
from draftmill.worker.cli.takeover import takeover_check


def found(cache: Path, fault: str) -> Finding:
    return takeover_check(cache, 30, (sys.executable, "-m", "tests.worker.selftest.command", fault)).finding()


def test_another_worker_takes_over(cache: Path, boxed_model: Path) -> None:
    finding = found(cache, "none")
    assert finding.verdict == "ok", finding
    assert "of 20 lines; another worker took over, and each line has one result" in finding.found


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("loses", "no result for line-"),
        ("doubles", "several results for line-"),
        ("fails", "draftmill collect: "),
        ("blind", "a worker ended with code 1: it sees no work"),
    ],
)
def test_a_fault_is_found(cache: Path, boxed_model: Path, fault: str, said: str) -> None:
    finding = found(cache, fault)
    assert finding.verdict == "wrong"
    assert finding.found.startswith(said)


def test_it_ends_when_it_is_given_up(cache: Path, boxed_model: Path) -> None:
    given_up = Event()
    Timer(0.5, given_up.set).start()
    begin = time.monotonic()
    finding = takeover_check(cache, 10_000, given_up=given_up).finding()
    assert (finding.verdict, finding.found) == ("skipped", "interrupted")
    assert time.monotonic() - begin < 15
