"""`draftmill doctor` describes the machine and says by its exit code whether all is there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from draftmill.engine.bench.fits import PUBLISHED
from draftmill.engine.models.kernels_for import results_file
from draftmill.engine.models.pairs import PAIRS
from draftmill.engine.models.precision import Precision, remember
from draftmill.engine.state.memory import recommended
from draftmill.kernels.race import measurements
from draftmill.kernels.race.race import Result, write
from draftmill.producer.cli.main import main
from draftmill.worker.cli.doctor import examine_fits
from tests.redis_server import RedisServer

NEEDS, WEIGHTS = PUBLISHED["qwen3.5-4b"]
PUBLISHED_ENTRY = {"weights": WEIGHTS, **asdict(NEEDS)}


def doctor(url: str, cache: Path | None = None) -> tuple[int, dict[str, str]]:
    """The exit code, and for each line its verdict and text by its name."""
    env = {"DRAFTMILL_CACHE": str(cache)} if cache else None
    done = CliRunner().invoke(main, ["doctor", "--redis-url", url], env=env)
    assert done.stderr == ""
    return done.exit_code, by_name(done.stdout)


def by_name(said: str) -> dict[str, str]:
    lines = [line.split(maxsplit=2) for line in said.splitlines()]
    return {name: f"{verdict} {text}" for verdict, name, text in lines}


def test_a_machine_that_has_all(redis_server: RedisServer):
    """In a process of its own: what it finds depends on what that can import."""
    command = [sys.executable, "-m", "draftmill", "doctor", "--redis-url", redis_server.url]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    found = by_name(done.stdout)
    assert found["queue"].startswith("ok Valkey")
    assert found["queue"].endswith(redis_server.url)
    assert found["families"].startswith("ok gemma2")
    assert ", llama, " in found["families"]
    assert {"mlx", "mlx-lm", "rq", "device", "memory", "smollm2-135m"} <= found.keys()


def test_a_redis_that_cannot_be_reached():
    code, found = doctor("redis://127.0.0.1:1")
    assert code == 4
    assert found["queue"].startswith("missing cannot reach Redis at redis://127.0.0.1:1: connection refused")


def test_the_results_of_races(redis_server: RedisServer, tmp_path: Path):
    assert doctor(redis_server.url, tmp_path)[1]["kernels"] == "ok not used without a GPU: plain MLX runs"
    fast = Result("kernel", {"stock": 0.5, "kernel": 0.25}, {"simdgroups": "it fails: no such word"})
    write(results_file(tmp_path), {("attention", 32, 8): fast})
    code, found = doctor(redis_server.url, tmp_path)
    assert code == 0
    times = "kernel 0.250 ms, stock 0.500 ms, simdgroups: it fails: no such word"
    assert " ".join(found["attention"].split()) == f"slow 32 8 {times}"


def test_models_that_ran_in_another_type(redis_server: RedisServer, tmp_path: Path):
    remember("some/fine, weights 1", Precision("float16", "because Apple M1 emulates bfloat16"), tmp_path)
    assert doctor(redis_server.url, tmp_path)[1]["precision"] == (
        "ok some/fine: float16, because Apple M1 emulates bfloat16"
    )
    remember("some/wide, weights 1", Precision("bfloat16", "although Apple M1 emulates it: too wide"), tmp_path)
    code, found = doctor(redis_server.url, tmp_path)
    assert code == 0
    assert found["precision"] == "slow some/wide: bfloat16, although Apple M1 emulates it: too wide"


def test_models_that_ran_without_an_adapter(redis_server: RedisServer, tmp_path: Path):
    """Those whose folder is gone are not listed."""
    phi, plain = tmp_path / "phi", "plain: no adapter for phi3"
    phi.mkdir()
    known = {str(phi): plain, str(tmp_path / "gone"): plain}
    measurements.write(tmp_path / "plain.json", measurements.machine(), known)
    code, found = doctor(redis_server.url, tmp_path)
    assert code == 0
    assert found["plain"] == f"slow {phi}: no adapter for phi3"
    phi.rmdir()
    assert "plain" not in doctor(redis_server.url, tmp_path)[1]


def test_what_fits_for_each_known_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DRAFTMILL_CACHE", str(tmp_path))
    *known, (_, unknown, _) = examine_fits(recommended(16 << 30))
    assert [tuple(found) for found in known] == [
        ("fits", "qwen3-4b in 4 bits: 24 rows, 17,600 tokens in all, if nothing else needs the memory", "ok"),
        ("fits", "qwen3.5-4b in 4 bits: 24 rows, 13,312 tokens in all, if nothing else needs the memory", "ok"),
        ("fits", "qwen3.5-35b-a3b in 4 bits: not in 10.7 GiB: its weights take 19.1", "slow"),
    ]
    assert unknown.startswith("unknown until a worker has loaded them here: smollm2-135m, qwen3-8b, ")
    assert len(PAIRS) == len(known) + unknown.count(",") + 1
    measurements.write(tmp_path / "needs.json", measurements.machine(), {"mine/4bit": PUBLISHED_ENTRY})
    ((_, text, _), *_) = examine_fits(recommended(24 << 30))
    assert text == "mine/4bit: 32 rows, 78,336 tokens in all, if nothing else needs the memory"
