"""What a machine measured: kept beside others' entries, and done without where it cannot be written."""

from __future__ import annotations

import resource
import signal
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import pytest

from draftmill.kernels.gpu.cores import cores
from draftmill.kernels.race import measurements


def test_a_machine_is_its_chip_its_cores_and_what_runs_on_it() -> None:
    chip = mx.device_info()["device_name"]
    assert measurements.machine().startswith(f"{chip}, {f'{cores()} cores, ' if cores() else ''}MLX {version('mlx')}, ")


def test_an_entry_is_kept_beside_those_of_others(tmp_path: Path) -> None:
    file = tmp_path / "new" / "costs.json"
    measurements.write(file, "one", {"a": 1})
    measurements.write(file, "two", [2])
    measurements.write(file, "one", {"a": 3})
    assert measurements.read(file) == {"one": {"a": 3}, "two": [2]}


def test_a_broken_file_or_entry_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    for broken in (b"", b"\xff", b"[" * 100_000, b"[]", b'{"one": [1]}', b'{"one": null}', b'{"one": {}'):
        file.write_bytes(broken)
        assert measurements.known(file, "one") == {}


def test_a_full_disk_costs_only_the_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "costs.json"
    measurements.write(file, "one", 1)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
        measurements.write(file, "two", "x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert measurements.read(file) == {"one": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["costs.json"]
    assert "the next start measures again" in caplog.text
