"""`draftmill selftest` as a user runs it: its table, its report, its exit code."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from draftmill.engine.selftest.check import Check, Finding, Skipped, Wrong
from draftmill.engine.selftest.checks import Sizes
from draftmill.engine.selftest.tokens import FAMILIES
from draftmill.producer.cli.main import main
from draftmill.worker.cli.selftest import findings, report
from draftmill.worker.cli.selftest_report import contents, impersonal

SMALL = Sizes(prompts=2, tokens=4, timed_rows=(2,), timed_tokens=4)


def lost() -> str:
    raise Wrong("no result for line-3")


def missing() -> str:
    raise Skipped("there is no GPU")


def test_this_machine_is_sound(cache: Path, boxed_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(findings(cache, SMALL), None)
    lines = capsys.readouterr().out.splitlines()[1:]
    verdicts = {(words := re.split(r"\s{2,}", line))[0]: words[1] for line in lines}
    assert "wrong" not in verdicts.values(), lines
    assert {verdicts[f"stock forms, {family}"] for family in FAMILIES} == {"ok"}
    assert verdicts["tokens, float32, no drafts"] == verdicts["kill and resume"] == "ok"
    assert verdicts["tokens, float32, drafts"] == "ok"
    assert verdicts["speed, 2 rows"] == "told"


def test_one_wrong_check_is_named_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = Check("tokens", lambda: "8 of 8 rows"), Check("speed", lambda: "5 tokens/s", judged=False)
    checks = [*sound, Check("kill and resume", lost), Check("pools", missing)]
    with pytest.raises(SystemExit) as end:
        report((check.finding() for check in checks), tmp_path / "report.json")
    assert end.value.code == 1
    shown = capsys.readouterr()
    assert [line.split()[:2] for line in shown.out.splitlines()[1:3]] == [["tokens", "ok"], ["speed", "told"]]
    assert shown.err == "1 of 4 checks found something wrong: kill and resume\n"
    checks = json.loads((tmp_path / "report.json").read_text())["checks"]
    assert [(check["check"], check["verdict"], check["found"]) for check in checks][2:] == [
        ("kill and resume", "wrong", "no result for line-3"),
        ("pools", "skipped", "there is no GPU"),
    ]


def test_a_model_that_cannot_be_had_is_no_success(tmp_path: Path) -> None:
    command = "from draftmill.engine.selftest.checks import *; from pathlib import Path; import sys\n"
    command += "for name, checks in parts(Path(sys.argv[1]), Sizes()).items():\n"
    command += "    if name not in ('kernels', *FAMILIES): print(*(c.finding().verdict for c in checks()))"
    nowhere = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    words = [sys.executable, "-c", command, str(tmp_path / "cache")]
    done = subprocess.run(words, capture_output=True, text=True, env=nowhere, cwd="/")
    assert set(done.stdout.split()) == {"skipped"}, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["extra"], "unexpected extra argument"),
        (["--out", "/nowhere/report.json"], "cannot write the report to"),
        (["--fast"], "--fast"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["selftest", *arguments])
    assert done.exit_code == 2
    assert said in done.stderr.splitlines()[-1]


def test_the_report_says_nothing_of_its_owner() -> None:
    host, user, home = socket.gethostname(), getpass.getuser(), Path.home()
    said = f"cannot write {home}/Library/x y: {user}@{host} (log: {home}/logs/1.log) at redis://:secret@10.1.2.3:6379/0"
    text = json.dumps(contents([Finding("kill and resume", "wrong", f"{said} or 192.168.1.7", 1.5)]))
    for personal in (str(home) + "/", host, f"{user}@", "secret", "10.1.2.3", "192.168.1.7", "Library", "1.log"):
        assert personal not in text
    assert "cannot write PATH" in text


def test_what_a_report_keeps() -> None:
    found = [
        "5 tokens/s, mlx-lm 4: 1.25 times as fast",
        "float32: 8 of 8 rows are mlx-lm's, 80 tokens in all; 2.3 tokens per round",
        "logits of tiny-qwen3.5 are off by 2.5e-07 at most",
    ]
    for text in found:
        assert impersonal(text, ["some-mac.local", "some-mac", "jo"]) == text
    said = "jo's some-mac.local, fe80::1ff:fe23:4567:890a, ~/models and /tmp/a-b/0.log"
    assert impersonal(said, ["some-mac.local", "some-mac", "jo"]) == "NAME's NAME, ADDRESS, PATH and PATH"
