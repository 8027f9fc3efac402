"""The lock holds all that pyproject.toml asks for, in versions that it allows, for every machine; join.sh uses it."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.producer.conftest import ROOT

LOCK = ROOT / "deploy" / "lock"
RENEW = runpy.run_path(str(LOCK / "renew.py"))
LAYERS: dict[str, Any] = {layer.name: layer for layer in RENEW["LAYERS"]}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ABOUT: dict[str, Any] = PROJECT["project"]

Environment = Mapping[str, str]
ENVIRONMENTS: list[Environment] = RENEW["ENVIRONMENTS"]


def pins(name: str) -> list[str]:
    """All pins of a file of the lock, with those of the file below it."""
    below = LAYERS[name].below
    return RENEW["read"](LOCK / f"{name}.txt") + (pins(below) if below else [])


def versions(name: str, environment: Environment) -> dict[str, str]:
    """The version of each package that a file of the lock installs there."""
    found: dict[str, str] = {}
    for pin in pins(name):
        requirement = Requirement(pin.partition("\\")[0])
        if applies(requirement, environment):
            assert canonicalize_name(requirement.name) not in found, f"{requirement.name} is pinned twice"
            (pinned,) = requirement.specifier
            assert pinned.operator == "=="
            found[canonicalize_name(requirement.name)] = pinned.version
    return found


def applies(requirement: Requirement, environment: Environment, extras: Iterable[str] = ()) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in (*extras, ""))


def asked(name: str) -> list[Requirement]:
    """What pyproject.toml asks for directly, to build draftmill and to run it with the extras of this file."""
    optional = [text for extra in LAYERS[name].extras for text in ABOUT["optional-dependencies"][extra]]
    required = [] if name == "tools" else ABOUT["dependencies"]
    return [Requirement(text) for text in ("pip", *PROJECT["build-system"]["requires"], *required, *optional)]


def test_the_layers_serve_all_extras() -> None:
    files = {"tools.txt", "producer.txt", "serve.txt", "worker.txt", "run.txt", "dev.txt", "bench.txt"}
    assert {path.name for path in LOCK.glob("*.txt")} == {f"{name}.txt" for name in LAYERS} == files
    assert {extra for layer in LAYERS.values() for extra in layer.extras} == ABOUT["optional-dependencies"].keys()
    assert LAYERS["producer"].extras == ()


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_asked_for_is_pinned_within_its_bounds(name: str) -> None:
    for environment in ENVIRONMENTS:
        locked = versions(name, environment)
        for requirement in asked(name):
            if applies(requirement, environment):
                version = locked[canonicalize_name(requirement.name)]
                assert requirement.specifier.contains(version, prereleases=True), requirement


def needed(requirements: Iterable[Requirement], environment: Environment) -> Iterator[Requirement]:
    """These and all that they need in turn, as the installed packages say."""
    seen: set[tuple[str, frozenset[str]]] = set()
    ahead = [requirement for requirement in requirements if applies(requirement, environment)]
    while ahead:
        requirement = ahead.pop()
        if (key := (canonicalize_name(requirement.name), frozenset(requirement.extras))) in seen:
            yield requirement
            continue
        seen.add(key)
        yield requirement
        try:
            texts = metadata.requires(requirement.name) or []
        except metadata.PackageNotFoundError:  # it is for other machines
            continue
        ahead += [found for text in texts if applies(found := Requirement(text), environment, requirement.extras)]


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"bench"}))
def test_what_that_needs_is_pinned_too(name: str) -> None:
    for environment in ENVIRONMENTS:
        locked = versions(name, environment)
        for requirement in needed(asked(name), environment):
            version = locked[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), requirement


def test_packages_for_comparison_are_pinned() -> None:
    (peer,) = map(Requirement, PROJECT["dependency-groups"]["peers"])
    assert peer.specifier.contains(versions("dev", ENVIRONMENTS[0])[peer.name])


def test_only_workers_have_mlx() -> None:
    for environment in ENVIRONMENTS:
        assert not [package for package in versions("producer", environment) if "mlx" in package]
        locked = versions("worker", environment)
        assert ("mlx-metal" in locked, "mlx-cpu" in locked) == (
            environment["sys_platform"] == "darwin",
            environment["sys_platform"] == "linux",
        )


@pytest.mark.parametrize("name", LAYERS)
def test_every_pin_has_hashes_and_no_host(name: str) -> None:
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", pin) for pin in pins(name))
    text = (LOCK / f"{name}.txt").read_text("utf-8")
    assert "://" not in text
    assert "index" not in text


def test_pins_for_machines_that_are_not_ours_are_left_out() -> None:
    for_us = RENEW["for_us"]
    assert for_us("colorama==0.4.6 ; sys_platform == 'win32' \\\n") == ""
    assert for_us("anyio==4.16.0 ; sys_platform != 'emscripten' \\\n") == "anyio==4.16.0 \\\n"
    for pin in ("mlx-cpu==0.32.4 ; sys_platform == 'linux' \\\n", "click==8.5.1 \\\n"):
        assert for_us(pin) == pin


RECORDER = """#!/bin/sh
echo "$@" >>"{calls}"
case "$*" in
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/draftmill" ;;
esac
"""


def test_a_machine_that_joins_installs_from_the_lock(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / f"python3.{sys.version_info.minor}"
    for name in ("python3.13", "python3.12", "python3.11"):
        python = tmp_path / "bin" / name
        python.write_text(RECORDER.format(calls=calls))
        python.chmod(0o755)
    root = tmp_path / "root"
    environment = os.environ | {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "DESTDIR": str(root),
        "REDIS_URL": "redis://127.0.0.1:1",
    }
    (join,) = (ROOT / "deploy").rglob("join.sh")
    command = [join, "--pair", "auto"]
    first, second = (subprocess.run(command, env=environment, capture_output=True, text=True) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert "nothing to change" in second.stdout
    *packages, package = [call for call in calls.read_text().splitlines() if "pip install" in call]
    for call, name in zip(packages, ("tools", "worker"), strict=True):
        assert f"--no-deps --require-hashes --only-binary :all: -r {LOCK}/{name}.txt" in call
    assert "--no-deps --no-build-isolation /" in package
