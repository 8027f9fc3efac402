"""A command that is told to stop while it is still being loaded: its exit code, and no traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.producer.conftest import Shell

SCRIPT = "print('up', flush=True); from draftmill.__main__ import main; main()"
"""What the console script does, once Python itself is up."""


def stop(shell: Shell, number: signal.Signals, seconds: float, *arguments: str) -> tuple[int, str]:
    """Sends a command a signal so long after its start; its exit code, and what it said on standard error."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=shell.folder,
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    time.sleep(seconds)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_it_is_loaded(shell: Shell, number: signal.Signals) -> None:
    assert stop(shell, number, 0.05, "cron", "run") == (130, "")


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("run", "--help"), ("serve", "--help"), ("cron", "run"), ("status",)],
    ids=" ".join,
)
def test_at_any_moment(shell: Shell, arguments: tuple[str, ...]) -> None:
    for seconds in (0.1, 0.2, 0.3, 0.5, 0.8, 1.5):
        code, err = stop(shell, signal.SIGINT, seconds, *arguments)
        assert code in (0, 130), err  # 0 if it had ended before
        assert err.count("\n") <= 1, err
        assert "Traceback" not in err


WAITS = """
import sys, threading
from draftmill.producer.client.until_stopped import until_stopped
from draftmill.producer.queue.errors import heed_signals

heed_signals()
stop = threading.Event()

def work():
    assert threading.current_thread() is not threading.main_thread()  # whose wait a signal's handler may interrupt
    print("up", flush=True)
    while not stop.wait(0.0001):
        pass
    if sys.argv[1] == "stays":
        threading.Event().wait()
    return 7

sys.exit(until_stopped(work, stop.set))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_work_that_waits_is_told_to_stop(number: signal.Signals) -> None:
    """At whatever moment the signal comes: none of many may hang."""
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", WAITS, "ends"], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(20) == 7


def test_a_second_signal_ends_work_that_does_not_stop() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, "stays"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    assert process.returncode not in (0, 7, None)
