"""The house: how many files a folder may have, and that `lint-imports` sees an import that runs upward."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "engine", "producer", "worker")
MOST_FILES = 16


def test_no_folder_is_crowded() -> None:
    folders = [path for name in (*FOLDERS, "deploy", "tests") for path in (ROOT / name, *(ROOT / name).rglob("*"))]
    counts = {
        folder.relative_to(ROOT): sum(path.is_file() for path in folder.iterdir())
        for folder in folders
        if folder.is_dir() and folder.name != "__pycache__"
    }
    assert {str(folder): count for folder, count in counts.items() if count > MOST_FILES} == {}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package's modules, as `draftmill`, and its contracts."""
    folder = tmp_path_factory.mktemp("house")
    for name in FOLDERS:
        only_python = shutil.ignore_patterns("__pycache__", "drafts", "static", "examples", "*.metal", "*.h", "*.lua")
        shutil.copytree(ROOT / name, folder / "draftmill" / name, ignore=only_python)
    shutil.copy(ROOT / "__init__.py", folder / "draftmill")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(house: Path) -> str:
    """The names of the contracts that are broken there."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=house,
        env=os.environ | {"PYTHONPATH": str(house)},
        capture_output=True,
        text=True,
    )
    broken = re.findall(r"^(.+) BROKEN", done.stdout, re.MULTILINE)
    assert done.returncode == bool(broken), done.stdout + done.stderr
    return ", ".join(broken)


def test_no_import_runs_upward(house: Path) -> None:
    assert lint(house) == ""


@pytest.mark.parametrize(
    ("module", "planted", "contract"),
    [
        ("engine/text.py", "from ..worker import blas", "The floors of the house"),
        ("kernels/gpu/launch.py", "from .. import packing", "Inside kernels"),
        ("engine/schedule/row.py", "from ..choose import grammar", "Inside engine"),
        ("producer/queue/scripts.py", "from ..cli import options", "Inside producer"),
        ("producer/web/keys.py", "from .serve import errors", "Inside producer.web"),
        ("producer/input/lines.py", "import mlx.core", "A producer needs no MLX"),
        ("worker/host.py", "from ..producer.output import files", "Of the producer, a worker knows the queue"),
        ("engine/depth/round_cost.py", "from . import budget", "No cycles"),
    ],
)
def test_a_planted_import_is_seen(house: Path, module: str, planted: str, contract: str) -> None:
    path = house / "draftmill" / module
    sound = path.read_text("utf-8")
    path.write_text(f"{sound}\n{planted}\n", "utf-8")
    try:
        assert contract in lint(house)
    finally:
        path.write_text(sound, "utf-8")


def test_the_wheel_has_every_package() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    found = [path.parent for name in FOLDERS for path in (ROOT / name).rglob("__init__.py")]
    assert sorted(packages) == [
        "draftmill",
        *sorted(".".join(("draftmill", *p.relative_to(ROOT).parts)) for p in found),
    ]


def test_the_wheel_has_every_file_that_code_reads() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    packed = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")[1:]).glob(pattern)
    }
    others = {".py", ".pyc", ".md", ".txt"}  # code, and what only people read
    read = [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()]
    assert [str(path.relative_to(ROOT)) for path in read if path.suffix not in others and path not in packed] == []
