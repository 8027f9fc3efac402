"""The report of a self-test: what machine it is and what was found, and nothing of whose machine it is."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...engine.selftest.check import Finding
from ...kernels.gpu.cores import cores

PACKAGES = ("draftmill", "mlx", "mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "mlx-lm", "redis", "rq")

PERSONAL = {
    r"\w+://\S+": "URL",
    r"\S+@\S+": "ADDRESS",
    r"(?<![\w./])~?(?:/[^\s'\"():;,|]+)+/?": "PATH",
    r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?(?![\w.])": "ADDRESS",
    r"(?<![\w:])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{1,4}(?![\w:])": "ADDRESS",
}
"""What may tell whose machine it is, as errors quote it, and what stands for it."""


def write(file: Path, findings: Sequence[Finding]) -> None:
    """Write the report as JSON."""
    file.write_text(json.dumps(contents(findings), indent=2, ensure_ascii=False) + "\n", "utf-8")


def contents(findings: Sequence[Finding]) -> dict[str, Any]:
    """The machine, its software, and the findings, without personal data."""
    checks = [asdict(replace(finding, found=impersonal(finding.found, names()))) for finding in findings]
    return {"report": 1, "machine": machine(), "versions": dict(versions()), "checks": checks}


def machine() -> dict[str, Any]:
    """What kind of machine this is."""
    gpu = "Metal" if mx.metal.is_available() else "CUDA"
    return {
        "system": platform.system(),
        "release": platform.mac_ver()[0] or None,  # a Linux kernel's may name who built it
        "architecture": platform.machine(),
        "backend": "CPU" if mx.default_device() == mx.cpu else gpu,
        "chip": mx.device_info().get("device_name"),
        "gpu_cores": cores(),
        "cpu_cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024**3, 1),
    }


def versions() -> list[tuple[str, str]]:
    """Python, and the packages that are installed here."""
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found.append((package, metadata.version(package)))
    return found


def names() -> list[str]:
    """What this machine and its user are called."""
    host = socket.gethostname()
    found = [host, host.partition(".")[0]]
    with suppress(KeyError, OSError):  # a bare user id has no name
        found.append(getpass.getuser())
    return [name for name in found if name]


def impersonal(text: str, names: Sequence[str]) -> str:
    """A text without paths, addresses, and these names."""
    for pattern, word in PERSONAL.items():
        text = re.sub(pattern, word, text)
    for name in names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "NAME", text)
    return text
