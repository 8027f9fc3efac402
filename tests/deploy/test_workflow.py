"""What runs for every change, on GitHub: `make lint` checks the workflow, and notices mistakes in it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.producer.conftest import ROOT

WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
SELFTEST = ".venv/bin/draftmill selftest --out selftest.json"
LINTER = Path(sys.executable).with_name("actionlint")


def test_linux_runs_what_this_repository_asks_for_and_a_mac_the_tests_and_itself() -> None:
    jobs: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert commands == {"linux": [".ci/run"], "mac": ["make test", SELFTEST]}
    assert jobs["mac"]["runs-on"].startswith("macos-")
    (report,) = [step["with"]["path"] for step in jobs["mac"]["steps"] if "upload-artifact" in step.get("uses", "")]
    assert SELFTEST.endswith(f" {report}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    oldest, newest = jobs["linux"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={oldest},<3.{int(newest.split('.')[1]) + 1}"


@pytest.mark.parametrize(
    ("right", "wrong"), [("runs-on: macos-15", "runs-on: macos-0"), ("matrix.python }}-", "matrix.pyton }}-")]
)
def test_mistakes_are_found(right: str, wrong: str, tmp_path: Path) -> None:
    text = WORKFLOW.read_text("utf-8")
    assert right in text
    (tmp_path / "ci.yml").write_text(text.replace(right, wrong))
    checked = subprocess.run([LINTER, tmp_path / "ci.yml"], capture_output=True, text=True)
    assert checked.returncode == 1
    assert wrong.split()[-1].removesuffix("-").split(".")[-1] in checked.stdout


def test_it_has_none() -> None:
    checked = subprocess.run([LINTER, WORKFLOW], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
