"""join.sh and leave.sh, run below a folder of the test's: what they write, and that a worker runs from it.

worker.sh and newsyslog.conf are among what they install. No Mac was here: their macOS half runs with a `uname` and a
`sw_vers` that answer as a Mac's do, and starts nothing.
"""

from __future__ import annotations

import configparser
import os
import plistlib
import re
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis as redis_py

from draftmill.producer.queue import fleet
from tests.producer.cli.test_run import model
from tests.producer.conftest import ROOT
from tests.redis_server import RedisServer

__all__ = ["model"]

HOST = "mini-3"
SECRET = "open-sesame"


class Machine:
    """A machine whose files lie below `root`."""

    def __init__(self, root: Path, url: str, cache: Path) -> None:
        self.root = root
        self.home = root / "opt/draftmill"
        (self.home / "cache").mkdir(parents=True)
        (self.home / "cache" / "models").symlink_to(cache / "models")
        self.environment = os.environ | {"DESTDIR": str(root), "REDIS_URL": url}

    def __call__(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "deploy" / "mac" / script, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def join(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        joined = self("join.sh", "--host", HOST, "--venv", sys.prefix, *arguments)
        assert joined.returncode == 0, joined.stderr
        return joined

    def files(self) -> dict[str, tuple[bytes, int]]:
        """Each file's content and when it was written."""
        found = (path for path in self.root.rglob("*") if path.is_file() and "cache" not in path.parts)
        return {str(path.relative_to(self.root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}

    def become_a_mac(self, folder: Path, **answers: str) -> None:
        """From now on the commands that tell what a machine is answer as those of a Mac."""
        answers = {"uname -s": "Darwin", "uname -m": "arm64", "uname -n": "Mini-3.local", "sw_vers": "15.1"} | answers
        folder.mkdir()
        for command in ("uname", "sw_vers"):
            lines = [
                f'[ "{option}" != "{call.partition(" ")[2] or option}" ] || echo {answer}'
                for call, answer in answers.items()
                for option in ["$1"]
                if call.split()[0] == command
            ]
            (folder / command).write_text("\n".join(["#!/bin/sh", *lines, ""]))
            (folder / command).chmod(0o755)
        self.environment["PATH"] = f"{folder}:{self.environment['PATH']}"


@pytest.fixture
def machine(tmp_path: Path, redis_server: RedisServer, cache: Path) -> Machine:
    (tmp_path / "root").mkdir()
    return Machine(tmp_path / "root", redis_server.url, cache)


def wait_for(redis: redis_py.Redis, pair: str) -> fleet.Report:
    deadline = time.monotonic() + 60
    while True:
        for report in fleet.reports(redis):
            if report.text("pair") == pair and report.state == "working":
                return report
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_linux_machine_joins_changes_its_pair_and_leaves(machine: Machine, redis: redis_py.Redis, model: str) -> None:
    joined = machine.join("--pair", "auto", "--", "--watts", "40", "--max-rows", "4")
    assert f"nothing was started; by hand: {machine.home}/draftmill worker" in joined.stdout
    before = machine.files()
    assert before.keys() == {
        "etc/systemd/system/draftmill-worker.service",
        "opt/draftmill/draftmill",
        "opt/draftmill/worker.env",
    }
    again = machine.join("--pair", "auto", "--", "--watts", "40", "--max-rows", "4")
    assert "nothing to change" in again.stdout
    assert machine.files() == before

    unit: Any = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # names keep their case
    unit.read(machine.root / "etc/systemd/system/draftmill-worker.service")
    assert "@" not in " ".join(unit["Service"].values())
    assert int(unit["Service"]["TimeoutStopSec"]) == 330
    assert (unit["Service"]["Restart"], unit["Service"]["KillMode"]) == ("always", "mixed")
    command = shlex.split(unit["Service"]["ExecStart"])

    environment = {"PATH": os.environ["PATH"], "HOME": str(machine.root)}
    early = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert early.returncode == 2
    assert f"no pair is scheduled for {HOST}; say which: draftmill workers pair {HOST} PAIR" in early.stderr
    fleet.set_schedule(redis, HOST, [fleet.Shift(model)])
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as worker:
        report = wait_for(redis, model)
        assert (report.host, report.power_watts) == (HOST, 40)
        shown = machine.join("--pair", "auto", "--wait", "20", "--", "--watts", "40", "--max-rows", "4").stdout
        assert report.name in shown
        assert " working " in shown
        fleet.set_schedule(redis, HOST, [fleet.Shift("another")])
        assert worker.wait(30) == 75  # which systemd and launchd start again

    left = machine("leave.sh")
    assert left.returncode == 0, left.stderr
    assert machine.files() == {}
    assert not machine.home.exists()
    assert machine("leave.sh").returncode == 0


def test_credentials_are_its_user_s_alone(machine: Machine) -> None:
    machine.environment["REDIS_URL"] = url = f"redis://worker:{SECRET}@127.0.0.1:1"
    joined = machine.join("--pair", "auto")
    holders = [name for name, (content, _) in machine.files().items() if SECRET.encode() in content]
    assert holders == ["opt/draftmill/worker.env"]
    settings = machine.home / "worker.env"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    assert SECRET not in joined.stdout + joined.stderr
    del machine.environment["REDIS_URL"]
    machine.join("--pair", "auto", "--drain", "10")
    assert f"REDIS_URL='{url}'" in settings.read_text()
    assert "--drain 10" in settings.read_text()


def test_a_mac_s_files(machine: Machine, tmp_path: Path) -> None:
    machine.become_a_mac(tmp_path / "bin")
    joined = machine("join.sh", "--venv", sys.prefix, "--pair", "auto", "--wired-limit", "28000")
    assert joined.returncode == 0, joined.stderr
    files = machine.files()
    daemons = "Library/LaunchDaemons/org.draftmill"
    assert files.keys() == {
        "etc/newsyslog.d/draftmill.conf",
        f"{daemons}.wired-limit.plist",
        f"{daemons}.worker.plist",
        "opt/draftmill/draftmill",
        "opt/draftmill/worker.env",
    }
    worker = plistlib.loads(files[f"{daemons}.worker.plist"][0])
    assert worker["ProgramArguments"] == ["/bin/sh", f"{machine.home}/draftmill", "worker"]
    assert (worker["KeepAlive"], worker["RunAtLoad"], worker["ProcessType"]) == (True, True, "Interactive")
    assert (worker["ThrottleInterval"], worker["Umask"]) == (10, 0o077)
    assert worker["ExitTimeOut"] > 300
    assert worker["StandardErrorPath"] == f"{machine.root}/var/log/draftmill/start.log"
    wired = plistlib.loads(files[f"{daemons}.wired-limit.plist"][0])
    assert wired["ProgramArguments"][1] == "iogpu.wired_limit_mb=28000"
    assert wired["RunAtLoad"] is True
    assert b"--host Mini-3 " in files["opt/draftmill/worker.env"][0]
    assert b"--log " in files["opt/draftmill/worker.env"][0]
    (rotation,) = [line for line in files["etc/newsyslog.d/draftmill.conf"][0].decode().splitlines() if line[:1] != "#"]
    path, owner, mode, count, kilobytes, when, flags = rotation.split()
    assert path == f"{machine.root}/var/log/draftmill/*.log"
    assert owner.endswith(":")
    assert (int(mode, 8), int(count), int(kilobytes), when, set(flags)) == (0o640, 7, 1024, "*", {*"GNJ"})
    assert not any(re.search(rb"@[A-Z_]+@", content) for content, _ in files.values())
    again = machine("join.sh", "--venv", sys.prefix, "--pair", "auto", "--wired-limit", "28000")
    assert "nothing to change" in again.stdout
    assert machine.files() == files
    without = machine("join.sh", "--venv", sys.prefix, "--pair", "auto")
    assert without.stdout.count("removed") == 1
    assert files.keys() - machine.files().keys() == {f"{daemons}.wired-limit.plist"}
    for _ in range(2):
        assert machine("leave.sh").returncode == 0
        assert machine.files() == {}


@pytest.mark.parametrize(
    ("answers", "said"), [({"uname -m": "x86_64"}, "no Apple silicon"), ({"sw_vers": "13.7"}, "macOS 13.7 is too old")]
)
def test_a_mac_that_will_not_do(machine: Machine, tmp_path: Path, answers: dict[str, str], said: str) -> None:
    machine.become_a_mac(tmp_path / "bin", **answers)
    refused = machine("join.sh", "--pair", "auto")
    assert refused.returncode == 2
    assert said in refused.stderr
    assert machine.files() == {}


def test_mistakes_are_one_line(machine: Machine) -> None:
    for arguments, said in (
        ((), "say which --pair"),
        (("--pair",), "--pair needs a value"),
        (("--pear", "x"), "no such option: --pear"),
        (("--pair", "it's"), "no quotes"),
        (("--pair", "auto", "--drain", "soon"), "whole numbers"),
        (("--pair", "auto", "--user", "nobody-here"), "there is no user nobody-here"),
    ):
        refused = machine("join.sh", *arguments)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    machine.environment["REDIS_URL"] = ""
    assert "REDIS_URL is not set" in machine("join.sh", "--pair", "auto").stderr
    assert machine.files() == {}


def test_results_that_wait_are_not_removed(machine: Machine) -> None:
    machine.join("--pair", "auto")
    spool = machine.home / "home/spool/0123/mini-3-abcdef.jsonl"
    spool.parent.mkdir(parents=True)
    spool.write_bytes(orjson.dumps({"job": "x"}))
    before = machine.files()
    refused = machine("leave.sh")
    assert refused.returncode == 2
    assert "results wait in" in refused.stderr
    assert machine.files() == before
    assert machine("leave.sh", "--force").returncode == 0
    assert machine.files() == {}
