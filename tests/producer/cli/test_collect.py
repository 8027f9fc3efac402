"""Submit and collect through the real command line and a real worker: every line once, whatever is cut."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
import redis as redis_py

from draftmill.producer.output.output import Output
from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.batches import Result
from draftmill.producer.queue.errors import UserError
from tests.producer.conftest import Shell
from tests.producer.output.test_output import rows
from tests.redis_server import RedisServer
from tests.worker.run_worker import PAIR

LINES = 240


@pytest.fixture
def prompts(shell: Shell, redis: redis_py.Redis, redis_server: RedisServer) -> str:
    shell.environment["REDIS_URL"] = redis_server.url
    lines = [{"id": f"r-{n}", "prompt": "say it", "max_tokens": 5 + n % 11} for n in range(LINES)]
    lines[7]["prompt"] = "long " * 2000
    return shell.write("in.jsonl", b"\n".join(orjson.dumps(line) for line in lines))


def ids(shell: Shell, name: str) -> list[str]:
    return [orjson.loads(line)["custom_id"] for line in shell.lines(name)]


def test_submit_again_queues_nothing_and_collect_waits(shell: Shell, prompts: str) -> None:
    first = shell("submit", prompts, "--pair", PAIR)
    assert first.returncode == 0
    assert first.stderr == f"Note: no live worker serves {PAIR}; start one with: draftmill worker --pair {PAIR}\n"
    batch = first.stdout.strip()
    assert shell("submit", prompts, "--pair", PAIR).stdout.strip() == batch
    listed = shell("status").stdout.splitlines()
    assert listed[1].split() == [batch, "queued", f"0/{LINES}", "0", PAIR, "in.jsonl"]
    shown = shell("status", batch).stdout
    assert f"{LINES} queued, 0 not submitted" in shown
    early = shell("collect", batch, "-o", "out.jsonl")
    assert early.returncode == 0
    assert early.stderr.startswith(f"{LINES} of {LINES} lines have no result yet")


def test_force_never_loses_what_redis_no_longer_has(shell: Shell, worker: Callable[[], None]) -> None:
    shell.write("in.jsonl", b'{"id": "r-0", "prompt": "say it", "max_tokens": 2}')
    shell.write("other.jsonl", b"precious")
    batch = shell("submit", "in.jsonl", "--pair", PAIR).stdout.strip()
    worker()
    for out in ("out.jsonl", "out.jsonl", "other.jsonl"):
        collected = shell("collect", batch, "-o", out, "--follow", "--force")
        assert collected.returncode == (0 if out == "out.jsonl" else 2)
        assert ids(shell, "out.jsonl") == ["r-0"]
    assert "Note: --force does nothing: results" in collected.stderr
    assert shell.lines("other.jsonl") == [b"precious"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_collect_that_is_told_to_stop_can_go_on(
    shell: Shell, prompts: str, worker: Callable[[], None], number: signal.Signals
) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, as nohup wants it, and stays so in what is started")
    batch = shell("submit", prompts, "--pair", PAIR).stdout.strip()
    collecting = shell.start("collect", batch, "-o", "out.jsonl", "--follow")
    assert collecting.stderr
    assert "waiting for a worker" in collecting.stderr.readline()
    collecting.send_signal(number)
    assert collecting.communicate(timeout=60)[1] == "interrupted; the same command goes on, the batch runs on\n"
    assert collecting.returncode == 130
    worker()
    assert shell("collect", batch, "-o", "out.jsonl", "--follow", "--sorted").returncode == 4
    assert ids(shell, "out.jsonl") == [f"r-{n}" for n in range(LINES) if n != 7]


def test_collect_killed_at_random_moments_has_every_line_once(
    shell: Shell, prompts: str, worker: Callable[[], None]
) -> None:
    worker()
    batch = shell("submit", prompts, "--pair", PAIR).stdout.strip()
    dice = random.Random(5)
    for _ in range(3):
        collecting = shell.start("collect", batch, "-o", "out.jsonl", "--follow", "--sorted")
        time.sleep(0.8 + 1.5 * dice.random())
        collecting.kill()
        collecting.communicate()
    last = shell("collect", batch, "-o", "out.jsonl", "--follow", "--sorted")
    assert last.returncode == 4
    assert last.stdout == f"{LINES - 1} results in out.jsonl, 1 failed and 0 bad lines in out.jsonl.errors.jsonl\n"
    assert ids(shell, "out.jsonl") == [f"r-{n}" for n in range(LINES) if n != 7]
    assert ids(shell, "out.jsonl.errors.jsonl") == ["r-7"]
    before = shell.lines("out.jsonl")
    shell("collect", batch, "-o", "out.jsonl")
    assert shell.lines("out.jsonl") == before


def test_results_are_kept_for_as_long_as_was_asked(
    shell: Shell, prompts: str, redis: redis_py.Redis, worker: Callable[[], None]
) -> None:
    wrong = shell("submit", prompts, "--pair", PAIR, "--keep-results", "5s")
    assert wrong.returncode == 2
    assert "'5s' is not at least 1m" in wrong.stderr
    batch = shell("submit", prompts, "--pair", PAIR, "--keep-results", "2h").stdout.strip()
    assert shell("submit", prompts, "--pair", PAIR).stdout.strip() == batch
    worker()
    assert shell("collect", batch, "-o", "out.jsonl", "--follow", "--leave").returncode == 4
    assert 7100 < redis.ttl(wire.results_key(batch)) <= 7200
    again = shell("submit", prompts, "--pair", PAIR, "--keep-results", "3h")
    assert "Note: it is complete already; --keep-results changes nothing" in again.stderr


def test_collected_results_are_dropped_unless_left(shell: Shell, prompts: str, worker: Callable[[], None]) -> None:
    worker()
    batch = shell("submit", prompts, "--pair", PAIR).stdout.strip()
    assert shell("collect", batch, "-o", "first.jsonl", "--follow", "--leave").returncode == 4
    assert shell("collect", batch, "-o", "second.jsonl").returncode == 4
    assert sorted(shell.lines("first.jsonl")) == sorted(shell.lines("second.jsonl"))
    third = shell("collect", batch, "-o", "third.jsonl")
    assert third.returncode == 2
    assert "were collected on" in third.stderr
    assert not (shell.folder / "third.jsonl").exists()
    assert " collected " in shell("status").stdout
    again = shell("submit", prompts, "--pair", PAIR)
    assert (again.returncode, again.stdout.strip()) == (0, batch)
    assert f"draftmill forget {batch}" in again.stderr
    assert shell("forget", batch).stdout == f"Forgot {batch}\n"
    assert "No batches here" in shell("status").stdout
    shell("submit", prompts, "--pair", PAIR)
    assert shell("forget", batch).returncode == 2
    shell("collect", batch, "-o", "third.jsonl", "--follow")
    assert len(shell.lines("third.jsonl")) == len(shell.lines("first.jsonl"))


def test_bad_lines_reach_the_error_file(shell: Shell, prompts: str, worker: Callable[[], None]) -> None:
    shell.write("some.jsonl", b"not json\n" + b"\n".join(shell.lines(prompts)[:3]) + b'\n{"prompt": ""}\n')
    submitted = shell("submit", "some.jsonl", "--pair", PAIR)
    assert submitted.returncode == 4
    assert submitted.stderr.count("Bad line ") == 2
    batch = submitted.stdout.strip()
    early = shell("collect", batch, "-o", "out.csv")
    assert (early.returncode, early.stdout) == (
        4,
        "0 results in out.csv, 0 failed and 2 bad lines in out.csv.errors.jsonl\n",
    )
    worker()
    for _ in range(2):
        late = shell("collect", batch, "-o", "out.csv", "--follow", "--json")
        report = orjson.loads(late.stdout)
        assert (late.returncode, report["done"], report["failed"], report["bad"]) == (4, 3, 0, 2)
    bad = [orjson.loads(line)["error"]["message"] for line in shell.lines("out.csv.errors.jsonl")]
    assert [message[:16] for message in bad] == ["line 1: not JSON", "line 5: prompt i"]


def test_results_go_to_one_file_at_a_time(
    shell: Shell, prompts: str, worker: Callable[[], None], redis: redis_py.Redis
) -> None:
    batch = shell("submit", prompts, "--pair", PAIR).stdout.strip()
    first = shell.start("collect", batch, "-o", "first.jsonl", "--follow")
    assert first.stderr
    assert "waiting for a worker" in first.stderr.readline()
    worker()
    while not batches.handed(redis, batch):
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # it is silent for less time than others wait
    second = shell("collect", batch, "-o", "second.jsonl")
    assert second.returncode == 2
    assert f"the results of {batch} go to " in second.stderr
    assert "/first.jsonl" in second.stderr
    third = shell("collect", batch, "-o", "third.jsonl", "--leave")  # it could never have them all
    assert third.returncode == 2
    assert f"the results of {batch} go to " in third.stderr
    assert "/first.jsonl, and some are no longer in Redis; collect there" in third.stderr
    first.kill()
    first.communicate()
    assert not [*shell.folder.glob("second*"), *shell.folder.glob("third*")]
    assert shell("collect", batch, "-o", "first.jsonl", "--follow").returncode == 4
    assert sorted(ids(shell, "first.jsonl")) == sorted(f"r-{n}" for n in range(LINES) if n != 7)


def test_limits_are_set_and_listed(shell: Shell) -> None:
    shell("limit", "*", "64")
    assert shell("limit", "nightly", "8").stdout == "*  limit 64, running 0\nnightly  limit 8, running 0\n"
    assert shell("limit", "*", "0").stdout == "nightly  limit 8, running 0\n"
    assert shell("limit", "nightly").returncode == 2
    assert shell("limit", "nightly", "0").stdout == ""


def test_cancel_ends_what_is_queued(shell: Shell, prompts: str) -> None:
    batch = shell("submit", prompts, "--pair", PAIR).stdout.strip()
    assert shell("cancel", batch).stdout.startswith(f"Cancelled {LINES} queued lines")
    assert shell("cancel", batch).stdout == f"{batch} is complete already\n"
    assert "cancelled" in shell("status").stdout
    collected = shell("collect", batch, "-o", "out.jsonl")
    assert collected.returncode == 4
    assert len(shell.lines("out.jsonl.errors.jsonl")) == LINES
    again = shell("submit", prompts, "--pair", PAIR)
    assert again.returncode == 2
    assert again.stderr.startswith(f"Error: {batch} was cancelled")


@pytest.fixture
def small_disk(shell: Shell) -> Iterator[Path]:
    """A file system of 64 KB, mounted below the shell's folder."""
    disk = shell.folder / "disk"
    disk.mkdir()
    if (
        sys.platform != "linux"
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "draftmill", disk]).returncode
    ):
        pytest.skip("mounting a small file system needs Linux and root")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("out", "size", "named"),
    [
        ("out.jsonl", "64k", "out.jsonl"),
        ("out.csv", "20k", "out.csv"),
        ("out.parquet", "32k", "out.parquet.partial.jsonl"),
        ("out.parquet", "56k", "out.parquet"),  # while the file is made of its rows
    ],
)
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    shell: Shell, prompts: str, worker: Callable[[], None], small_disk: Path, out: str, size: str, named: str
) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", small_disk], check=True)
    worker()
    batch = shell("submit", prompts, "--pair", PAIR).stdout.strip()
    shell("status", batch, "--watch")
    for _ in range(2):
        full = shell("collect", batch, "-o", f"disk/{out}")
        assert full.returncode == 2
        assert full.stderr == (
            f"Error: cannot write 'disk/{named}': the disk is full; free some space and run the same command again\n"
        )
    if named == "out.parquet":
        assert len(shell.lines("disk/out.parquet.partial.jsonl")) == LINES - 1
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    last = shell("collect", batch, "-o", f"disk/{out}")
    assert last.returncode == 4, last.stderr
    found = [row["custom_id"] for row in rows(small_disk / out)]
    assert sorted(found) == sorted(f"r-{n}" for n in range(LINES) if n != 7)


def result(n: int, failed: bool) -> Result:
    error = {"code": "x", "message": "y"} if failed else None
    response = None if failed else {"body": {}}
    return Result(f"{n + 1}-0", orjson.dumps({"custom_id": f"r-{n}", "response": response, "error": error}), n)


def test_half_a_line_is_never_kept(tmp_path: Path) -> None:
    """A disk that is full in the middle of a line, and has room again before the command ends."""
    path = tmp_path / "out.jsonl"
    with Output(path, "b") as output:
        output.write(result(0, False))
    before = path.read_bytes()
    long = Result("2-0", orjson.dumps({"custom_id": "long", "response": {"body": {"x": "x" * 30_000}}}), 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    expected = pytest.raises(UserError, match="cannot write")
    with expected, Output(path, "b") as output:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        try:
            output.write(long)
            output.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, ignored)
    assert len(path.read_bytes()) > len(before)
    with Output(path, "b") as output:
        output.write(long)
    assert path.read_bytes() == before + long.line + b"\n"


def test_notes_of_workers_are_told_with_their_lines(
    shell: Shell, worker: Callable[[], None], redis: redis_py.Redis
) -> None:
    worker()
    lines = [{"prompt": f"say {n}", "max_tokens": 3, "thinking_budget": 5 if n else None} for n in range(4)]
    shell.write("in.jsonl", b"\n".join(map(orjson.dumps, lines)))
    batch = shell("submit", "in.jsonl", "--pair", PAIR).stdout.strip()
    note = "thinking_budget: this answer has no thoughts to limit (3 lines)"
    for name, leave in (("out.csv", ["--leave"]), ("out.jsonl", [])):
        done = shell("collect", batch, "-o", name, "--follow", "--json", *leave)
        assert orjson.loads(done.stdout)["notes"] == [note]
        assert done.stderr.splitlines()[-1] == f"Note: {note}"
    again = shell("collect", batch, "-o", "out.jsonl", "--json")
    assert (orjson.loads(again.stdout)["notes"], again.stderr) == ([], "")
