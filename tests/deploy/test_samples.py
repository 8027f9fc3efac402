"""The samples for cron and launchd are what those read, and the commands in them run."""

from __future__ import annotations

import plistlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import redis as redis_py
from croniter import croniter

from draftmill.producer.cli.run import run
from draftmill.producer.queue import batches
from tests.producer.conftest import ROOT
from tests.redis_server import RedisServer

DEPLOY = ROOT / "deploy"
HOUR = "$(date +%Y-%m-%dT%H)"
FIELDS = {"Minute": 59, "Hour": 23, "Day": 31, "Weekday": 7, "Month": 12}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder as the samples suppose it: a checkout with draftmill in its .venv, and notes."""
    program = tmp_path / "draftmill" / ".venv" / "bin" / "draftmill"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m draftmill "$@"\n')
    program.chmod(0o755)
    notes = tmp_path / "work" / "notes"
    notes.mkdir(parents=True)
    (notes / "a.txt").write_text("The oven runs hot.")
    return tmp_path


@pytest.fixture
def crontab() -> dict[str, str]:
    """The sample's commands by the subcommand that they call, as cron gives them to the shell."""
    commands: dict[str, str] = {}
    for line in (DEPLOY / "linux" / "notes.crontab").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            *when, command = line.split(None, 5)
            assert croniter.is_valid(" ".join(when))
            assert not re.search(r"(?<!\\)%", command)
            commands["submit" if " submit " in command else "run"] = command.replace("\\%", "%")
    return commands


def parsed(command: click.Command, text: str) -> dict[str, object]:
    """The options that `command` gets, as far as they can be told without running a shell."""
    words = shlex.split(text.partition(f" {command.name} ")[2])
    words = words[: next((n for n, word in enumerate(words) if word.startswith((">", "2>"))), None)]
    return command.make_context(str(command.name), words).params


def test_cron_submits_each_hour_once(
    crontab: dict[str, str], home: Path, redis_server: RedisServer, redis: redis_py.Redis
) -> None:
    environment = {"HOME": str(home), "PATH": "/bin:/usr/bin", "REDIS_URL": redis_server.url, "LANG": "C.UTF-8"}
    command = crontab["submit"].replace(HOUR, "2026-11-22T09")
    for _ in range(2):
        done = subprocess.run(["/bin/sh", "-c", command], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (home / "work" / "cron.log").read_text()
    (batch,) = batches.list_batches(redis)
    assert (batch.total, batch.source) == (1, "notes")
    assert (home / "work" / "batches.log").read_text() == f"{batch.id}\n" * 2
    subprocess.run(["/bin/sh", "-c", crontab["submit"]], env=environment, check=True)
    assert len(batches.list_batches(redis)) == 2


def test_cron_s_other_command_is_one_of_run(crontab: dict[str, str]) -> None:
    given = parsed(run, crontab["run"])
    assert (given["input"], str(given["out"])) == ("notes", "summaries/$(date +%Y-%m-%d).jsonl")


def test_launchd_s_sample() -> None:
    plist = plistlib.loads((DEPLOY / "mac" / "org.draftmill.notes.plist").read_bytes())
    assert f"{plist['Label']}.plist" == "org.draftmill.notes.plist"
    assert all(0 <= value <= FIELDS[name] for name, value in plist["StartCalendarInterval"].items())
    shell, option, command = plist["ProgramArguments"]
    assert (shell, option) == ("/bin/sh", "-c")
    given = parsed(run, command)
    assert (given["input"], given["slot"]) == ("notes", f"notes {HOUR}")
    assert str(given["out"]).startswith("summaries/")
    folders = {
        plist["WorkingDirectory"],
        *(str(Path(plist[f"Standard{name}Path"]).parent) for name in ("Out", "Error")),
    }
    assert folders == {"/Users/YOU/work"}
