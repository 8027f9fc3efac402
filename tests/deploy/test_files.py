"""Every file in deploy/ is one that its program takes: parsed here, or told of in the test that runs it."""

from __future__ import annotations

import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from draftmill.engine.depth.command_buffers import SECONDS
from draftmill.engine.models.pairs import resolve
from draftmill.worker.cli.worker import worker
from tests.producer.conftest import ROOT
from tests.redis_server import RedisServer, fresh_server

DEPLOY = ROOT / "deploy"
SCRIPTS = sorted(DEPLOY.rglob("*.sh"))
UNIT = "draftmill-worker.service"


def test_each_file_is_told_of_in_a_test() -> None:
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py"))
    files = [
        path.relative_to(DEPLOY) for path in DEPLOY.rglob("*") if path.is_file() and path.suffix not in (".md", ".png")
    ]
    assert [str(path) for path in files if not any(part in tests for part in path.parts[1:] or path.parts)] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    """setup.sh is run by no test: it made the environment that they run in."""
    shell = script.read_text("utf-8").splitlines()[0].rpartition("/")[2].split()[-1]
    assert subprocess.run([shell, "-n", script]).returncode == 0
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if checker := shutil.which("shellcheck", path=path):
        assert subprocess.run([checker, script]).returncode == 0


@pytest.mark.parametrize(
    "name", ["org.draftmill.worker.plist", "org.draftmill.wired-limit.plist", "org.draftmill.agent.plist"]
)
def test_property_lists(name: str, tmp_path: Path) -> None:
    text = (DEPLOY / "mac" / name).read_text("utf-8")
    filled = re.sub(r"@(STOP_SECONDS|WIRED_LIMIT)@", "330", text)
    plist = plistlib.loads(filled.encode())
    assert f"{plist['Label']}.plist" == name
    if checker := shutil.which("plutil"):
        (tmp_path / name).write_text(filled)
        assert subprocess.run([checker, "-lint", tmp_path / name]).returncode == 0


def test_an_agent_is_a_worker_that_gives_way() -> None:
    """Its command is one that `draftmill worker` takes."""
    plist = plistlib.loads((DEPLOY / "mac" / "org.draftmill.agent.plist").read_bytes())
    *shell, script = plist["ProgramArguments"]
    assert shell == ["/bin/sh", "-c"]
    assert subprocess.run(["/bin/sh", "-n", "-c", script]).returncode == 0
    before, _, command = script.partition(" & exec ")
    assert before == "caffeinate -i -w $$"
    program, *words = shlex.split(command)
    assert (program, words[0]) == ("$HOME/draftmill/.venv/bin/draftmill", "worker")
    options = worker.make_context("worker", words[1:]).params
    assert 0 < options["gpu_seconds"] < SECONDS
    assert resolve(options["pair"]).draft
    assert plist["ExitTimeOut"] > options["drain"]
    assert (plist["LimitLoadToSessionType"], plist["KeepAlive"], plist["Nice"]) == ("Aqua", True, 10)
    assert plist["EnvironmentVariables"].keys() == {"REDIS_URL"}


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if not (checker := shutil.which("systemd-analyze")):
        pytest.skip("no systemd here; test_join.py parses the unit")
    words = {"@USER@": "root", "@PREFIX@": "/tmp", "@STOP_SECONDS@": "330"}
    unit = re.sub("@[A-Z_]+@", lambda word: words[word[0]], (DEPLOY / "linux" / UNIT).read_text("utf-8"))
    (tmp_path / UNIT).write_text(unit)
    checked = subprocess.run([checker, "verify", "--man=no", tmp_path / UNIT], capture_output=True, text=True)
    assert UNIT not in checked.stderr
    assert checked.returncode == 0, checked.stderr


def test_the_server_s_configuration() -> None:
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as folder:
        server = RedisServer(Path(folder))
        settings = ["--port", "0", "--unixsocket", str(server.socket), "--dir", folder]
        with subprocess.Popen(
            [server.program, DEPLOY / "redis" / "redis.conf", *settings], stdout=subprocess.DEVNULL
        ) as process:
            server.process = process
            server.wait()
            with server.connect() as redis:
                names = ("appendonly", "appendfsync", "maxmemory-policy")
                kept = [redis.config_get(name)[name] for name in names]
            server.kill()
    assert kept == ["yes", "everysec", "noeviction"]


def test_the_guides_name_files_that_are_there() -> None:
    file = re.compile(r"`(?:deploy/)?([\w./-]+\.(?:sh|conf|plist|service|crontab|yml|yaml))\b")
    for page in DEPLOY.rglob("*.md"):
        named = file.findall(page.read_text("utf-8"))
        assert [name for name in named if not any(DEPLOY.rglob(Path(name).name))] == []


def test_a_backup_as_the_guide_says(tmp_path: Path) -> None:
    with fresh_server() as server:
        with server.connect() as redis:
            redis.config_set("auto-aof-rewrite-percentage", 0)
            for n in range(100):
                redis.rpush("kept", n)
            assert redis.info("persistence")["aof_rewrite_in_progress"] == 0
            shutil.copytree(server.folder / "appendonlydir", tmp_path / "appendonlydir")
            redis.rpush("kept", "later")
        server.kill()
        shutil.rmtree(server.folder / "appendonlydir")
        shutil.copytree(tmp_path / "appendonlydir", server.folder / "appendonlydir")
        server.start()
        with server.connect() as redis:
            assert redis.llen("kept") == 100
