"""Where data and cache lie: where the system keeps such things, and where earlier versions put them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDERS = """
import sys
sys.platform = {platform!r}
from draftmill.producer.queue import paths
print(paths.data_dir())
print(paths.cache_dir())
"""


class Machine:
    """A user's home on a system; the variables that matter are set to nothing but what is given."""

    def __init__(self, home: Path, platform: str) -> None:
        self.home, self.platform = home, platform

    def __call__(self, **variables: str) -> list[str]:
        """The folders for data and cache, relative to the home."""
        ours = ("DRAFTMILL_HOME", "DRAFTMILL_CACHE", "XDG_DATA_HOME", "XDG_CACHE_HOME")
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        said = subprocess.run(
            [sys.executable, "-c", FOLDERS.format(platform=self.platform)],
            env=environment | {"HOME": str(self.home)} | variables,
            capture_output=True,
            text=True,
            check=True,
        )
        return [os.path.relpath(line, self.home) for line in said.stdout.splitlines()]


@pytest.fixture
def linux(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "linux")


@pytest.fixture
def mac(tmp_path: Path) -> Machine:
    """As far as Python can tell."""
    return Machine(tmp_path, "darwin")


def test_on_linux(linux: Machine) -> None:
    assert linux() == [".local/share/draftmill", ".cache/draftmill"]
    chosen = {"XDG_DATA_HOME": str(linux.home / "data"), "XDG_CACHE_HOME": str(linux.home / "cached")}
    assert linux(**chosen) == ["data/draftmill", "cached/draftmill"]


def test_on_a_mac(mac: Machine) -> None:
    assert mac() == ["Library/Application Support/draftmill", "Library/Caches/draftmill"]


def test_what_a_mac_has_already_is_found_whatever_is_set(mac: Machine) -> None:
    chosen = {"XDG_DATA_HOME": str(mac.home / "data"), "XDG_CACHE_HOME": str(mac.home / "cached")}
    assert mac(**chosen) == ["data/draftmill", "cached/draftmill"]
    earlier = mac()
    for folder in earlier:
        (mac.home / folder).mkdir(parents=True)
    assert mac(**chosen) == earlier


def test_variables_of_its_own_go_first(linux: Machine) -> None:
    assert linux(DRAFTMILL_HOME=str(linux.home / "a"), DRAFTMILL_CACHE="~/b") == ["a", "b"]
