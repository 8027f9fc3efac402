"""`draftmill bench` as a user runs it: figures, files, and one line for what cannot be."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from draftmill.producer.cli.main import main

TINY = ("--shape", "tiny-qwen3", "--context", "16", "--tokens", "8", "--repeats", "1")


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "draftmill", "bench", "-o", str(folder / "bench.json"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def test_a_shape_at_two_acceptances(tmp_path: Path) -> None:
    done = bench(tmp_path, *TINY, "--rows", "1,2", "--accept", "1,4", "--arms", "mlx-batch,full-depth")
    assert done.returncode == 0, done.stderr
    assert "tiny-qwen3 float32, decoding, 4 tokens per round" in done.stdout
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [table["lines"][1]["label"] for table in written["tables"]] == ["2", "2"]
    assert set(written["tables"][0]["lines"][0]["cells"]) == {"mlx-batch", "full-depth"}
    assert written["machine"]["versions"]["mlx"]
    assert written["arguments"]["rows"] == [1, 2]


def test_rows_of_mixed_acceptance(tmp_path: Path) -> None:
    done = bench(tmp_path, *TINY, "--rows", "4", "--accept", "mixed", "--arms", "mlx-batch,full-depth,adaptive")
    assert done.returncode == 0, done.stderr
    assert "decoding, 1, 2, 4 and 8 tokens per round by request in turn" in done.stdout
    assert "adaptive to the best other" in done.stdout


def test_wall_times_of_a_model_that_a_cpu_does_not_take(tmp_path: Path) -> None:
    done = bench(tmp_path, "--suite", "--only", "qwen3-4b-4bit", "--only", "qwen3-4b")
    assert done.returncode == 0, done.stderr
    assert "qwen3-4b-4bit: skipped, its weights of 3.1 GiB would take a CPU hours" in done.stdout
    (table,) = json.loads((tmp_path / "bench.json").read_text())["tables"]
    assert [note.partition(":")[0] for note in table["notes"]] == ["qwen3-4b", "qwen3-4b-4bit"]


def test_a_dataset_and_a_template(tmp_path: Path) -> None:
    done = bench(tmp_path, *TINY, "--dataset", "4", "--rows", "2", "--accept", "4", "--arms", "mlx-batch,full-depth")
    assert done.returncode == 0, done.stderr
    assert "whole run of 4 requests" in done.stdout
    done = bench(tmp_path, *TINY, "--dataset", "4", "--template", "30", "--rows", "2", "--accept", "4")
    assert done.returncode == 0, done.stderr
    assert "4 requests that share 30 tokens" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name one of --pair, --shape and --suite"),
        (("--pair", "smollm2-135m"), "--pair and --data belong together"),
        (("--shape", "qwen9"), "'qwen9' is unknown; known: qwen3-4b, "),
        ((*TINY, "--arms", "vllm"), "'vllm' is unknown; known: mlx-stream, "),
        ((*TINY, "--rows", "many"), "'many' is no list of numbers such as 1,4,8"),
        ((*TINY, "--accept", "8,nan"), "nan is not 1 or more"),
        ((*TINY, "--chart", "/nowhere/chart.png"), "there is no folder /nowhere"),
        (("--suite", "--only", "qwen3-4b", "--limit", "3"), "--limit means nothing with --suite without smollm2-135m"),
        ((*TINY, "--accept", "99"), "99 is more than the draft's block of 8"),
        ((*TINY, "--rows", "1,4", "--accept", "2,mixed"), "'mixed' takes --rows of 4 and more"),
        (("--suite", "--only", "grid-7"), "'grid-7' is unknown; known: idle, "),
        (("--suite", "--only", "wall-time"), "smollm2-135m takes prompts: name a file of them by --data"),
        (("--suite", "--only", "idle", "--arms", "adaptive"), "--arms means nothing with --suite without wall-time"),
        (("--suite", "--rows", "4"), "--rows means nothing with --suite"),
        (("--pair", "x", "--data", __file__, "--accept", "2"), "--accept means nothing with --pair"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(main, ["bench", "-o", str(tmp_path / "bench.json"), *arguments])
    assert done.exit_code == 2
    assert message in done.stderr.splitlines()[-1]
    assert done.stdout == ""  # it is said before anything is measured


def test_lines_that_cannot_be_run_are_named(tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "hi"}\n{"prompt": 7}\n')
    arms = ("--tokens", "8", "--rows", "1", "--repeats", "1", "--arms", "depth-0")
    done = bench(tmp_path, "--pair", "smollm2-135m", "--data", str(data), "--dataset", "2", *arms)
    assert done.returncode == 0, done.stderr
    assert f"{data}: lines that cannot be run are left out, 1 in all; line 2: " in done.stderr
    assert "whole run of 2 requests on 1 prompts" in done.stdout


def test_a_chart_or_what_it_needs(tmp_path: Path) -> None:
    chart = tmp_path / "chart.png"
    done = bench(
        tmp_path, *TINY, "--rows", "1,2", "--accept", "4", "--arms", "mlx-batch,adaptive", "--chart", str(chart)
    )
    if importlib.util.find_spec("matplotlib"):
        assert done.returncode == 0
        assert chart.read_bytes().startswith(b"\x89PNG")
    else:
        assert done.returncode == 2
        assert "a chart needs matplotlib: pip install 'draftmill[bench]'" in done.stderr.splitlines()[-1]
        assert not (tmp_path / "bench.json").exists()
