"""No password of a Redis URL is in anything that any command prints or logs, however the URL is written."""

from __future__ import annotations

import logging
import subprocess
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
import redis as redis_py
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftmill.producer.cli.main import main
from draftmill.worker import blas
from tests.producer.conftest import ROOT
from tests.producer.queue.test_urls import MARKS, urls
from tests.redis_server import fresh_server
from tests.worker.run_worker import Settings

HOSTS = ("127.0.0.1:1", "[::1]:1", "localhost:1/0", "127.0.0.1:1/2?db=1", "127.0.0.1:port", "127.0.0.1:1/0?x=y")
HOSTS = (*HOSTS, "127.0.0.1:1,[::1]:1/mill", "127.0.0.1:1/mill/0?sentinel_password=x")
"""Where nobody answers, quickly."""

INPUT = "in.jsonl"
COMMANDS = (
    ("status",),
    ("status", "batch_a", "--json"),
    ("run", INPUT, "-o", "out.jsonl"),
    ("submit", INPUT),
    ("submit", INPUT, "--dry-run"),
    ("collect", "batch_a", "-o", "out.jsonl"),
    ("cancel", "batch_a"),
    ("forget", "batch_a"),
    ("limit", "*", "4"),
    ("workers",),
    ("workers", "drain", "mini"),
    ("workers", "pair", "mini", "x"),
    ("cron", "list"),
    ("cron", "run"),
    ("cron", "remove", "x"),
    ("cron", "add", "x", "--every", "1h", "submit", INPUT),
    ("serve", "--port", "0"),
    ("dashboard", "--port", "0"),
    ("exporter", "--port", "0"),
    ("worker", "--pair", "qwen3-4b"),
    ("doctor",),
    ("redis", "ping"),
    ("pairs",),
    ("no-such-command",),
)


@st.composite
def lines(draw: st.DrawFn) -> tuple[list[str], dict[str, str | None]]:
    """A command line that has such a URL somewhere, and an environment that may."""
    command, url = list(draw(st.sampled_from(COMMANDS))), draw(urls(HOSTS))
    debug = draw(st.sampled_from([[], ["--debug"]]))
    looks_like_one = url.startswith(("redis", "unix")) or ("://" in url and "@" in url)
    anywhere = ["argument", "equals"] if looks_like_one else []
    place = draw(st.sampled_from(["option", "environment", "both", *anywhere]))
    at = draw(st.integers(1, len(command)))
    options = {
        "option": ["--redis-url", url],
        "equals": [f"--redis-url={url}"],
        "argument": [url],
        "both": ["--redis-url", url],
    }
    arguments = [*command[:at], *options.get(place, []), *command[at:]]
    return [*debug, *arguments], {"REDIS_URL": url if place in ("environment", "both") else None}


@given(line=lines())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_command_shows_a_password(
    line: tuple[list[str], dict[str, str | None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments, environment = line
    caplog.clear()
    monkeypatch.chdir(tmp_path)
    Path(INPUT).write_text('{"prompt": "hello"}\n')
    environment |= {"DRAFTMILL_HOME": "/dev/null/none"}  # no private server is started
    environment |= {"LD_PRELOAD": blas.library() or "openblas"}  # no command loads it into this process
    with caplog.at_level(logging.DEBUG):
        done = CliRunner().invoke(main, arguments, env=environment)
    told = done.stdout + done.stderr + caplog.text
    if done.exc_info and not isinstance(done.exception, SystemExit):  # with --debug: Python prints it
        told += "".join(traceback.format_exception(*done.exc_info))
    else:
        assert done.exit_code != 70, told
    assert not any(mark in told for mark in MARKS), told


PASSWORD = "s3cr3t#/?@:%[]& t0k3n"
FORMS = ("unix://:{quoted}@{path}", "unix://default:{quoted}@{path}?db=0", "unix://{path}?password={quoted}")


@pytest.mark.parametrize("form", FORMS)
def test_nothing_that_works_shows_its_password(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(INPUT).write_text('{"prompt": "hello"}\nnot json\n')
    with fresh_server("--requirepass", PASSWORD) as server:
        url = form.format(quoted=quote(PASSWORD, safe=""), path=server.socket)
        settings = Settings(url, str(server.folder / "spool"), rows=1, round_seconds=0.1)
        worker = subprocess.Popen(
            settings.command(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n"
        told = ""
        environment = {"LD_PRELOAD": blas.library() or "openblas"}
        for arguments in (
            ["submit", INPUT, "--pair", "set-speed"],
            ["submit", INPUT, "--pair", "set-speed", "--dry-run"],
            ["status"],
            ["status", "--json"],
            ["workers"],
            ["workers", "--json"],
            ["limit", "*", "4"],
            ["cron", "add", "x", "--every", "1h", "submit", INPUT],
            ["cron", "list", "--json"],
            ["doctor"],
            ["collect", "batch_a", "-o", "out.jsonl"],
        ):
            at = 1 if "cron" not in arguments else 2
            line = [*arguments[:at], "--redis-url", url, *arguments[at:]]
            done = CliRunner().invoke(main, line, env=environment)
            assert done.exit_code in (0, 2, 4), done.stderr
            assert "AUTH" not in done.stderr.upper()
            told += done.stdout + done.stderr
        with redis_py.Redis.from_url(url) as admin:
            admin.config_set("requirepass", "another")
            admin.client_kill_filter(skipme=False)
        told += _until(worker, "refuses the user name or password")
        server.kill()
        told += _until(worker, "cannot reach Redis")
        worker.kill()
        told += worker.communicate()[1]
    assert not any(mark in told for mark in MARKS), told


def _until(worker: subprocess.Popen[str], said: str) -> str:
    """What the worker logs until it says this."""
    assert worker.stderr
    told = ""
    for line in worker.stderr:
        told += line
        if said in line:
            return told
    raise AssertionError(told)
