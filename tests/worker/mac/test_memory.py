"""A worker on a Mac that runs short of memory: what macOS says, what the worker does, and what the next one says."""

from __future__ import annotations

import fcntl
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from draftmill.worker.host import Reading, boot
from draftmill.worker.mac.lives import LifeFile, look_back
from draftmill.worker.mac.memory import CALM, LEAST, SETTLE, MemoryReading, Relief, memory
from draftmill.worker.worker import MillWorker
from tests.redis_server import RedisServer
from tests.worker.set_speed_engine import SetSpeedEngine

SHORT, WELL = MemoryReading("warning", 3 * 1024**3), MemoryReading("normal", 0)


def test_what_macos_says() -> None:
    swap = "total = 4096.00M  used = 3072.00M  free = 1024.00M  (encrypted)"
    assert memory(f"2\n{swap}") == SHORT
    assert memory("1\ntotal = 0.00M  used = 0.00M  free = 0.00M") == WELL
    assert memory("4") == MemoryReading("critical", None)
    assert memory("") == MemoryReading("unknown", None)
    assert str(SHORT) == "memory pressure warning, 3.0 GiB swapped out"
    assert boot() == boot()


def test_it_gives_back_half_at_a_time_and_takes_it_again_when_it_was_calm() -> None:
    relief, now = Relief(), 0.0
    assert not relief.look(WELL, now)
    shares = []
    for _ in range(6):
        now += SETTLE
        relief.look(SHORT, now)
        assert not relief.look(SHORT, now + SETTLE / 2)
        shares.append(relief.share)
    assert shares == [1 / 2, 1 / 4, 1 / 8, LEAST, LEAST, LEAST]
    assert not relief.look(WELL, now + CALM / 2)
    relief.look(SHORT, now + CALM / 2)
    assert not relief.look(WELL, now + CALM)
    now += 2 * CALM
    for _ in range(5):
        relief.look(WELL, now)
        now += CALM
    assert relief.share == 1
    assert not relief.look(MemoryReading(), now)


def test_a_worker_under_pressure_holds_less(redis_server: RedisServer, tmp_path: Path) -> None:
    with redis_server.connect() as client:
        engine = SetSpeedEngine(max_rows=8)
        worker = MillWorker(engine, "set-speed", client, tmp_path)
        assert worker._room() == (0, 0)
        worker.sensors.latest = Reading(memory=SHORT)
        worker.relief = Relief(now=-SETTLE)
        worker._watch_memory()
        assert engine.max_rows == 4
        assert worker.report()["memory_pressure"] == "warning"
        assert worker.metrics.registry.get_sample_value("draftmill_slots") == 4
        assert worker.metrics.registry.get_sample_value("draftmill_memory_short") == 1
        worker.spool.close()


def test_the_next_worker_says_how_the_last_one_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lives = tmp_path / "lives"
    assert not look_back(lives, "boot 1")
    LifeFile(lives, "mini-good", "boot 1").close()
    killed = """
import os, sys
from pathlib import Path
from draftmill.worker.mac.lives import LifeFile
from draftmill.worker.mac.memory import MemoryReading
file = LifeFile(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
file.note(MemoryReading(sys.argv[4], 3 * 1024**3))
os.kill(os.getpid(), 9)
"""
    for name, when, pressure in (
        ("mini-1", "boot 2", "critical"),
        ("mini-2", "boot 2", "normal"),
        ("mini-3", "boot 1", "critical"),
    ):
        done = subprocess.run([sys.executable, "-c", killed, lives, name, when, pressure])
        assert done.returncode == -signal.SIGKILL
    alive = LifeFile(lives, "mini-4", "boot 2")
    with caplog.at_level(logging.WARNING):
        assert look_back(lives, "boot 2")
    assert [record.message for record in caplog.records] == [
        "mini-1 was killed while memory was short (memory pressure critical, 3.0 GiB swapped out): "
        "most likely by macOS",
        "mini-2 was killed, or crashed (memory pressure normal, 3.0 GiB swapped out)",
        "mini-3 ended as its machine did: by a restart or without power",
    ]
    assert [path.name for path in lives.iterdir()] == ["mini-4.json"]
    assert not look_back(lives, "boot 2")
    alive.close()
    assert list(lives.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_costs_only_the_story(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    life = LifeFile(tmp_path / "file" / "lives", "mini", "boot")
    life.note(SHORT)
    life.close()
    assert not look_back(tmp_path / "file" / "lives", "boot")


def test_damaged_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "mini.json").write_bytes(b"{")
    (tmp_path / "list.json").write_bytes(b"[]")
    with (tmp_path / "held.json").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not look_back(tmp_path, "boot")
        assert [path.name for path in tmp_path.iterdir()] == ["held.json"]
