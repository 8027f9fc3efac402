"""Killed, repeated, retried: through the real command line, each line has exactly one result, in every format."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from tests.producer.cli.test_run import model as model  # the fixture
from tests.producer.conftest import Shell
from tests.producer.output.test_output import FORMATS, rows, stray
from tests.worker.run_worker import PAIR

LINES = 400


def prompts(shell: Shell, count: int, prompt: str = "say it") -> list[str]:
    """Arguments that submit `count` lines, the eighth of which fails."""
    lines = [{"id": f"r-{n}", "prompt": prompt, "max_tokens": 5 + n % 11, "stars": n % 5} for n in range(count)]
    lines[7]["prompt"] = "long " * 2000
    shell.write("in.jsonl", b"\n".join(orjson.dumps(line) for line in lines))
    return ["in.jsonl", "--pair", PAIR, "--keep", "stars"]


def kill_at_random(
    shell: Shell, dice: random.Random, seconds: float, *arguments: str, after: str | None = None
) -> None:
    """Kills a command within `seconds` of its start, or of the line on standard error that has `after` in it."""
    process = shell.start(*arguments)
    assert process.stderr
    while after and (line := process.stderr.readline()) and after not in line:
        pass
    time.sleep(seconds * dice.random())
    process.kill()
    process.communicate()


def errors(shell: Shell, out: str) -> list[str]:
    path = shell.folder / f"{out}.errors.jsonl"
    return [orjson.loads(line)["custom_id"] for line in path.read_bytes().splitlines()] if path.exists() else []


def expect(shell: Shell, out: str, count: int, failed: list[int]) -> None:
    """OUT has each line once, in input order; the error file the failed ones."""
    good = [f"r-{n}" for n in range(count) if n not in failed]
    assert [row["custom_id"] for row in rows(shell.folder / out)] == good
    assert errors(shell, out) == [f"r-{n}" for n in failed]
    assert stray(shell.folder) <= {f"{out}.draftmill.json", "in.jsonl"}


@pytest.mark.parametrize(("format", "kills"), [("jsonl", 6), ("csv", 2), ("parquet", 2)])
def test_submit_and_collect_killed_ten_times(shell: Shell, worker: Callable[[], None], format: str, kills: int) -> None:
    """Ten times over the three formats."""
    dice, out = random.Random(format), f"out.{format}"
    arguments = prompts(shell, LINES)
    for _ in range(kills):
        kill_at_random(shell, dice, 0.9, "submit", *arguments)
    worker()
    batch = shell("submit", *arguments).stdout.strip()
    for _ in range(kills):
        kill_at_random(shell, dice, 1.2, "collect", batch, "-o", out, "--follow", "--sorted")
    last = shell("collect", batch, "-o", out, "--follow", "--sorted")
    assert last.returncode == 4
    assert last.stdout == f"{LINES - 1} results in {out}, 1 failed and 0 bad lines in {out}.errors.jsonl\n"
    expect(shell, out, LINES, [7])
    before = (shell.folder / out).read_bytes()
    assert shell("collect", batch, "-o", out).returncode == 4
    assert (shell.folder / out).read_bytes() == before


@pytest.mark.parametrize("format", FORMATS)
def test_failures_run_again_after_they_were_collected(shell: Shell, worker: Callable[[], None], format: str) -> None:
    """A job that fails until a file is there; killed between at random moments."""
    dice, out, needed = random.Random(format), f"out.{format}", shell.folder / "needed"
    arguments = prompts(shell, 40)
    lines = [orjson.loads(line) for line in shell.lines("in.jsonl")]
    for n in (3, 5):
        lines[n]["prompt"] = f"needs:{needed}"
    shell.write("in.jsonl", b"\n".join(orjson.dumps(line) for line in lines))
    worker()
    batch = shell("submit", *arguments).stdout.strip()
    assert shell("collect", batch, "-o", out, "--follow", "--sorted").returncode == 4
    expect(shell, out, 40, [3, 5, 7])
    assert orjson.loads(shell.lines(f"{out}.errors.jsonl")[0])["keep"] == {"stars": 3}

    again = shell("submit", *arguments, "--retry-failed")
    assert (again.stdout.strip(), again.stderr) == (batch, "Note: 3 failed lines queued again\n")
    shell("status", batch, "--watch")
    shell("collect", batch, "-o", out, "--follow", "--leave")
    assert sorted(errors(shell, out)) == ["r-3", "r-5", "r-7"]  # they failed again, and stand there once
    needed.touch()
    for _ in range(2):
        kill_at_random(shell, dice, 0.9, "submit", *arguments, "--retry-failed")
        kill_at_random(shell, dice, 0.9, "collect", batch, "-o", out, "--follow")
    shell("submit", *arguments, "--retry-failed")
    last = shell("collect", batch, "-o", out, "--follow")
    assert last.stdout == f"39 results in {out}, 1 failed and 0 bad lines in {out}.errors.jsonl\n", last
    needed.unlink()
    found = [row["custom_id"] for row in rows(shell.folder / out)]
    assert sorted(found) == sorted(f"r-{n}" for n in range(40) if n != 7)
    assert errors(shell, out) == ["r-7"]
    assert stray(shell.folder) == {f"{out}.draftmill.json", "in.jsonl"}


def test_nothing_that_failed_is_nothing_to_do(shell: Shell, worker: Callable[[], None]) -> None:
    shell.write("in.jsonl", '{"prompt": "say it", "max_tokens": 3}\n')
    worker()
    arguments = ["in.jsonl", "--pair", PAIR]
    batch = shell("submit", *arguments).stdout.strip()
    shell("collect", batch, "-o", "out.csv", "--follow")
    again = shell("submit", *arguments, "--retry-failed")
    assert (again.returncode, again.stderr) == (0, "Note: 0 failed lines queued again\n")
    assert shell("status", batch).stdout.splitlines()[1] == "state     collected"


def test_a_changed_parameter_is_a_new_batch_and_says_so(shell: Shell, worker: Callable[[], None]) -> None:
    worker()
    arguments = prompts(shell, 20)
    first = shell("submit", *arguments).stdout.strip()
    shell("collect", first, "-o", "out.jsonl", "--follow")
    second = shell("submit", *arguments, "--temperature", "0.5", "--system", "Be brief.")
    batch = second.stdout.strip()
    why = "--system has changed; --temperature was not given, is 0.5"
    assert f"Note: a new batch, not {first}: {why}\n" in second.stderr
    refused = shell("collect", batch, "-o", "out.jsonl")
    assert refused.returncode == 2
    assert refused.stderr == (
        f"Error: 'out.jsonl' holds {first}, not {batch} ({why}); choose another file or overwrite it with --force\n"
    )


RUN_LINES = 120


@pytest.mark.parametrize(("format", "kills"), [("jsonl", 3), ("csv", 1), ("parquet", 1)])
def test_run_killed_again_and_again(shell: Shell, model: str, format: str, kills: int) -> None:
    """A few times over the three formats; each start loads the model."""
    dice, out = random.Random(format), f"out.{format}"
    lines = [{"id": f"r-{n}", "prompt": "a", "max_tokens": 1 + 9 * n % 80, "stars": n} for n in range(RUN_LINES)]
    lines[7]["prompt"] = "word " * 20_000
    shell.write("in.jsonl", b"\n".join(orjson.dumps(line) for line in lines))
    command = ["run", "in.jsonl", "-o", out, "--pair", model, "--keep", "stars", "--sorted"]
    kill_at_random(shell, dice, 5, *command)
    for _ in range(kills - 1):
        kill_at_random(shell, dice, 1.5, *command, after="is ready")
    last = shell(*command)
    assert last.returncode == 4, last.stderr
    expect(shell, out, RUN_LINES, [7])
    assert [int(row["stars"]) for row in rows(shell.folder / out) if "stars" in row] == (
        [] if format == "jsonl" else [n for n in range(RUN_LINES) if n != 7]
    )


def test_run_retries_what_failed(shell: Shell, model: str) -> None:
    """Lines that the model's context refuses, until the model has a longer one."""
    folder = shell.folder / "model"
    shutil.copytree(model, folder)
    config = orjson.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(orjson.dumps(config | {"max_position_embeddings": 64}))
    lines = [{"id": f"r-{n}", "prompt": "word " * (200 if n == 2 else 2), "max_tokens": 3} for n in range(4)]
    shell.write("in.jsonl", b"\n".join(orjson.dumps(line) for line in lines))
    command = ["run", "in.jsonl", "-o", "out.csv", "--pair", str(folder), "--sorted"]
    assert shell(*command).returncode == 4
    assert errors(shell, "out.csv") == ["r-2"]
    assert shell(*command, "--retry-failed").returncode == 4
    assert errors(shell, "out.csv") == ["r-2"]
    (folder / "config.json").write_bytes(orjson.dumps(config))
    last = shell(*command, "--retry-failed", "--json")
    assert last.returncode == 0, last.stderr
    report = orjson.loads(last.stdout)
    assert (report["done"], report["failed"], report["errors"], report["complete"]) == (4, 0, None, True)
    assert [row["custom_id"] for row in rows(shell.folder / "out.csv")] == [f"r-{n}" for n in range(4)]
    assert not Path(shell.folder, "out.csv.errors.jsonl").exists()
    assert "complete already" in shell(*command, "--retry-failed").stderr
