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


NOBODY = """
import pwd, sys

def unknown(uid):
    raise KeyError(uid)

pwd.getpwuid = unknown  # as for a user id of a container
"""


def without_passwd_entry(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", NOBODY + code],
        env={"PATH": os.environ["PATH"]} | environment,
        input='{"prompt": "a"}',
        capture_output=True,
        text=True,
        timeout=60,
    )


SUBMIT = 'from draftmill.producer.cli.main import main; main(["submit", "-", "--pair", "nobody"])'


def test_without_a_home_it_says_what_to_set() -> None:
    done = without_passwd_entry(SUBMIT)
    assert (done.returncode, done.stderr) == (2, "Error: no home folder is known: set HOME or DRAFTMILL_HOME\n")
    for platform in ("linux", "darwin"):
        done = without_passwd_entry(FOLDERS.format(platform=platform), DRAFTMILL_HOME="/a")
        assert "UserError: no home folder is known: set HOME or DRAFTMILL_CACHE\n" in done.stderr


def test_a_home_is_not_needed_where_the_folders_are_given() -> None:
    ours = without_passwd_entry(FOLDERS.format(platform="linux"), DRAFTMILL_HOME="/a", DRAFTMILL_CACHE="/b")
    assert ours.stdout.split() == ["/a", "/b"]
    usual = without_passwd_entry(FOLDERS.format(platform="linux"), XDG_DATA_HOME="/a", XDG_CACHE_HOME="/b")
    assert usual.stdout.split() == ["/a/draftmill", "/b/draftmill"]


def test_a_user_id_without_a_name_is_the_user() -> None:
    code = "import redis; from draftmill.producer.queue.connect import user; print(user(redis.Redis()))"
    said = without_passwd_entry(code)
    assert said.stdout == f"{os.getuid()}\n"
