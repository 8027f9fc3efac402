"""Workers whose GPU gives up, below a parent: nothing is lost, nobody is to blame, the next one has a lower bound."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import orjson
import pytest

from draftmill.engine.depth.command_buffers import SECONDS
from draftmill.producer.queue import batches, fleet, wire
from draftmill.producer.queue.errors import BUG
from draftmill.worker.mac.parent import HALVINGS, bounded
from tests.producer.queue.helpers import leases_of
from tests.worker.conftest import ROOT, Mill
from tests.worker.run_worker import Settings

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(mill: Mill) -> Iterator[Start]:
    """Starts a parent whose workers abort after so many rounds each."""
    started: list[subprocess.Popen[str]] = []

    def parent(rounds: str, **changes: object) -> subprocess.Popen[str]:
        settings = orjson.dumps(asdict(Settings(mill.server.url, str(mill.spool), host="mini")) | changes).decode()
        command = [sys.executable, "-m", "tests.worker.mac.run_parent", settings, rounds]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield parent
    for process in started:
        for _ in range(2):  # by kill -9 its worker would go on
            process.terminate()
            time.sleep(0.1)
        process.communicate(timeout=30)


def blamed(mill: Mill, ended: bool = True) -> int:
    """Jobs with a lost lease on their record; those that ended have one lease besides, under which they did."""
    keys = mill.redis.scan_iter("rq:job:*")
    return sum((leases_of(mill, key.decode().removeprefix("rq:job:")) or 0) > ended for key in keys)


def test_aborted_workers_lose_and_blame_nothing(mill: Mill, start: Start) -> None:
    mill.submit(120, tokens=10)
    parent = start("40,30", lease=60.0, metrics=True)
    mill.wait(lambda status: status.complete, 60)  # long before a lease ends
    assert len(mill.lines()) == 120
    assert all(line["error"] is None for line in mill.lines().values())
    assert blamed(mill) == 0
    (report,) = fleet.reports(mill.redis)
    assert (report.host, report.gone) == ("mini", False)
    with urllib.request.urlopen(f"http://127.0.0.1:{report.text('metrics').rpartition(':')[2]}/metrics") as page:
        assert "\ndraftmill_gpu_aborts_total 2.0\n" in page.read().decode()
    parent.send_signal(signal.SIGTERM)
    _, said = parent.communicate(timeout=15)
    assert parent.returncode == 0
    assert said.count("the GPU gave up (Impacting Interactivity (0000000e:kIOGPU") == 2
    assert "after 2 such aborts" in said
    assert mill.redis.zcard(wire.WORKERS) == 0


def test_aborts_before_any_result_are_the_jobs_own_in_the_end(mill: Mill, start: Start) -> None:
    mill.submit(4, tokens=50)
    parent = start("3,3,3", lease=2.0)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == BUG
    assert "the GPU gave up 3 times before there was a result" in said
    assert said.count("handed back") >= 2


def test_a_worker_that_is_killed_is_said_to_be(mill: Mill, start: Start) -> None:
    mill.submit(50, tokens=200)
    parent = start("")
    mill.wait(lambda status: status.running > 0)
    (worker,) = batches.workers(mill.redis)
    pid: Any = mill.redis.hget(f"rq:worker:{worker['name']}", "pid")
    os.kill(int(pid), signal.SIGKILL)
    _, said = parent.communicate(timeout=15)
    assert parent.returncode == 128 + signal.SIGKILL
    assert "the worker was killed, as macOS does where memory is short" in said


def test_a_second_signal_is_passed_on_too(mill: Mill, start: Start) -> None:
    mill.submit(8, tokens=10_000)
    parent = start("")
    mill.wait_for_rows(4)
    parent.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    parent.send_signal(signal.SIGTERM)
    parent.communicate(timeout=15)
    assert parent.returncode == 130
    assert mill.status().running == 0
    assert blamed(mill, ended=False) == 0


def test_the_bound_halves_and_then_stays() -> None:
    assert [bounded(SECONDS, aborts) for aborts in range(3)] == [0.5, 0.25, 0.125]
    assert bounded(SECONDS, 100) == SECONDS / 2**HALVINGS


def test_a_whole_command_below_a_parent(mill: Mill) -> None:
    """What it does on a Mac: it is told here that this is one."""
    code = "import sys, draftmill.worker.cli.worker as _, draftmill.__main__ as m; sys.platform = 'darwin'; m.main()"
    command = [sys.executable, "-c", code, "worker", "--pair", "no-such-pair", "--redis-url", mill.server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: unknown pair 'no-such-pair'")
