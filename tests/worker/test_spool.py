"""Results on a worker's disk: what another version or a crash left there, and workers that start at the same time."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import orjson
import pytest

from draftmill.producer.queue.leases import Claimed, Outcome
from draftmill.worker.spool import Spool
from tests.worker.conftest import ROOT, Mill


def outcome(name: str) -> Outcome:
    return Outcome(Claimed(name, b"", "t", "", "", 0), "done", b'{"a": 1}', 3, 4, "", 2.5)


def leave(folder: Path, worker: str, *jobs: str) -> Path:
    """A file that a worker left when it crashed."""
    spool = Spool(folder, worker)
    spool.add([outcome(job) for job in jobs])
    spool.close()
    return spool.path


def test_what_a_worker_left_is_adopted_once_and_stays_until_redis_has_it(tmp_path: Path) -> None:
    left = leave(tmp_path, "dead", "x", "y")
    second, third = Spool(tmp_path, "second"), Spool(tmp_path, "third")
    assert second.adopt() == [outcome("x"), outcome("y")]
    assert third.adopt() == []
    assert left.exists()
    second.close()  # without clear(): Redis did not take them
    assert third.adopt() == [outcome("x"), outcome("y")]
    third.clear()
    third.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        b'{"job": "b-',
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"",
        b'{"job": 1, "token": "t", "status": "done", "line": "", "prompt_tokens": 1, "completion_tokens": 1}',
        b'{"id": "x", "lease": "t", "result": "of another version"}',
        orjson.dumps({"job": "x", "token": "t", "status": "vanished", "line": "{}"}),
    ],
)
def test_a_line_of_another_shape_costs_itself_only(
    tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    left = leave(tmp_path, "dead", "x")
    known = left.read_bytes()
    newer = orjson.dumps(orjson.loads(known) | {"of_a_later_version": {"a": [1]}})
    left.write_bytes(b"\n".join([line, known.strip(), newer, line]))
    with caplog.at_level(logging.WARNING):
        assert Spool(tmp_path, "next").adopt() == [outcome("x"), outcome("x")]
    assert "are damaged or of another version; they run again" in caplog.text


def test_a_worker_works_on_beside_a_file_of_another_shape(mill: Mill) -> None:
    mill.spool.mkdir()
    (mill.spool / "dead.jsonl").write_bytes(b'{"job": "b-0"}\n{"result": []}\n\0\0\0')
    mill.submit(4)
    worker = mill.start()
    mill.wait(lambda status: status.complete)
    code, logged = mill.stop(worker)
    assert code == 0
    assert "3 results in" in logged
    assert list(mill.spool.iterdir()) == []


RACER = """
import sys, time
from pathlib import Path
from draftmill.worker.spool import Spool
folder, name = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    spool = Spool(folder, f"{name}-{number}")
    for outcome in spool.adopt():
        print(outcome.job.id)
    spool.clear()
    spool.close()
"""


def test_workers_that_start_together_share_what_was_left(tmp_path: Path) -> None:
    for number in range(300):
        leave(tmp_path, f"dead-{number}", f"job-{number}")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, tmp_path, f"racer-{number}"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    found = Counter(line for racer in racers for line in racer.communicate(timeout=30)[0].split())
    assert [racer.returncode for racer in racers] == [0] * 4
    assert found == Counter(f"job-{number}" for number in range(300))
    assert list(tmp_path.iterdir()) == []
