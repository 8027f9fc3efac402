"""Writes the lock: the version and the hashes of each package that draftmill needs, to run and to be checked.

`make lock` runs it after a change of pyproject.toml; versions that still fit stay. `make lock OPTIONS=--upgrade` takes
the newest of all packages, and `make lock OPTIONS='--upgrade-package mlx'` of one. uv resolves, for Python 3.11 and
later and for all systems at once; markers say what is needed where.

Each file of the lock serves some extras. It begins with the file below it and adds what that lacks, so that each pin
stands once. Nothing is missing in it and nothing is to be built, so it is installed with
`--no-deps --require-hashes --only-binary :all:`, by pip or by uv.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from itertools import product
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

LOCK = Path(__file__).parent
PROJECT = LOCK.parents[1] / "pyproject.toml"


class Layer(NamedTuple):
    """A file of the lock with the extras that it serves; `below` is the file that it begins with."""

    name: str
    extras: tuple[str, ...]
    below: str = ""


RUN = ("worker", "serve", "data", "embedded")
TOOLS = Layer("tools", ())
LAYERS = (
    TOOLS,
    Layer("producer", (), "tools"),
    Layer("serve", ("serve",), "producer"),
    Layer("worker", ("worker",), "producer"),
    Layer("run", RUN, "worker"),
    Layer("dev", (*RUN, "remote", "dev"), "run"),
    Layer("bench", ("worker", "bench"), "worker"),
)
"""From the lowest upwards. The tools install the rest: setuptools, and a pip quicker than those of older Pythons."""

PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
ENVIRONMENTS = [
    {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": system.title(),
        "python_full_version": f"{python}.{patch}",
        "python_version": python,
        "sys_platform": system,
    }
    for python, patch, (system, machine) in product(PYTHONS, (0, 99), MACHINES)
]
"""Where draftmill can be installed from the lock, as the variables of markers."""

PLATFORMS = ("x86_64-manylinux_2_36", "aarch64-manylinux_2_36", "aarch64-apple-darwin")
"""The same machines in uv's words. MLX needs glibc 2.35; Debian 12 has 2.36."""
OLDEST_MACOS = "14.0"

HEADER = """\
# Pinned packages for {whom}. Written by `make lock`; deploy/lock/renew.py says how.
# pip install --no-deps --require-hashes --only-binary :all: -r deploy/lock/{name}.txt
"""


def main(options: list[str]) -> None:
    """Writes all files of the lock; `options` are those of `uv pip compile`."""
    pinned = [pin for path in sorted(LOCK.glob("*.txt")) for pin in read(path)]
    with tempfile.TemporaryDirectory() as scratch:
        build, pins = Path(scratch, "build.in"), Path(scratch, "pins.txt")
        build.write_text("\n".join(["pip", *tomllib.loads(PROJECT.read_text("utf-8"))["build-system"]["requires"]]))
        wanted = [str(PROJECT), str(build)]
        pins.write_text("".join(resolve(pinned, [*wanted, "--all-extras", *options])))
        # What we compare with pins other versions of what we use: of it only the package itself is installed.
        peers = resolve(pinned, ["--group", f"{PROJECT}:peers", "--no-deps", *options])
        held: dict[str, set[str]] = {"": set()}
        for layer in LAYERS:
            extras = [option for extra in layer.extras for option in ("--extra", extra)]
            sources = [str(build)] if layer is TOOLS else [*wanted, *extras]
            found = resolve([], [*sources, "--constraints", str(pins)])
            if layer.name == "dev":
                found += peers
            write(layer, [pin for pin in found if pin not in held[layer.below]])
            held[layer.name] = held[layer.below] | set(found)
    for layer in LAYERS:
        check(layer)


def resolve(pinned: list[str], arguments: list[str]) -> list[str]:
    """The pins that uv chooses, of those that are needed where we run; it stays with what is `pinned` if that fits."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", PYTHONS[0]]
    command += ["--generate-hashes", "--no-build", "--no-annotate", "--no-header"]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "out.txt")
        out.write_text("".join(pinned))
        subprocess.run([*command, *arguments, "--output-file", str(out)], check=True, stdout=subprocess.DEVNULL)
        return [plain for pin in read(out) if (plain := for_us(pin))]


def read(path: Path) -> list[str]:
    """The pins in a file of requirements, each with the lines of its hashes."""
    pins: list[str] = []
    for line in path.read_text("utf-8").splitlines(keepends=True):
        if line[0].isspace():
            pins[-1] += line
        elif line[0] not in "#-":
            pins.append(line)
    return pins


def for_us(pin: str) -> str:
    """The pin, without its marker if it is needed in all of our environments; empty if in none."""
    marker = Requirement(pin.partition("\\")[0]).marker
    needed = [marker is None or marker.evaluate(environment) for environment in ENVIRONMENTS]
    if not any(needed):
        return ""
    return re.sub(r" ;[^\\]*", " ", pin, count=1) if marker and all(needed) else pin


def write(layer: Layer, pins: list[str]) -> None:
    whom = f"draftmill[{','.join(layer.extras)}]" if layer.extras else "draftmill without extras"
    text = HEADER.format(whom="what installs the rest" if layer is TOOLS else whom, name=layer.name)
    text += f"-r {layer.below}.txt\n" if layer.below else ""
    (LOCK / f"{layer.name}.txt").write_text(text + "".join(pins), "utf-8")


def check(layer: Layer) -> None:
    """Fails unless there is a wheel of each package for each of our environments, and asks for nothing to be built."""
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--dry-run", "--target", str(LOCK / "nowhere")]
    command += ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(LOCK / f"{layer.name}.txt")]
    for python, platform in product(PYTHONS, PLATFORMS):
        where = ["--python-version", python, "--python-platform", platform]
        subprocess.run([*command, *where], check=True, env=os.environ | {"MACOSX_DEPLOYMENT_TARGET": OLDEST_MACOS})


if __name__ == "__main__":
    main(sys.argv[1:])
