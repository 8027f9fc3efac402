"""The bench measures what it says: known continuations, acceptance as asked, every arm the same tokens, idle time."""

from __future__ import annotations

import json
import resource
import shutil
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step

from draftmill.engine.bench import suite
from draftmill.engine.bench.arms import BenchError, synchronize
from draftmill.engine.bench.idle import Filler, Idle, measure_idle
from draftmill.engine.bench.measure import ENOUGH, PATIENCE, Cell, Sample, ratios, steady, whole
from draftmill.engine.bench.peers.zlab import twin
from draftmill.engine.bench.real import Real, pair_dataset_table, pair_table
from draftmill.engine.bench.replay import MIXED, pattern, survival
from draftmill.engine.bench.report import Line, Table, write
from draftmill.engine.bench.shapes import SHAPES
from draftmill.engine.bench.synthetic import ARMS, Synthetic
from draftmill.engine.bench.tables import template_table
from draftmill.engine.bench.wall_time import WallTime, Weights, unfit
from draftmill.engine.chat import ChatPrompt
from draftmill.engine.depth.calibration import Pace
from draftmill.engine.models.pairs import resolve
from tests.engine.small import HOPPER, NOT_ON_HOPPER

TINY = [name for name in SHAPES if name.startswith("tiny")]


@pytest.fixture(autouse=True)
def short_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.depth.calibration.ON_CPU", Pace(0.3, 0.3))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("bench")
    return cache(lambda shape, bits=16: Synthetic(shape, bits, folder))


@pytest.mark.parametrize("bits", [16, pytest.param(4, marks=NOT_ON_HOPPER)])
@pytest.mark.parametrize("name", TINY)
def test_mlx_lm_generates_the_known_continuation(name: str, bits: int) -> None:
    shape = SHAPES[name]
    model = shape.build(bits, mx.float32)
    steps = generate_step(mx.array([5, 9, 77]), model, max_tokens=20)
    assert [int(token) for token, _ in steps] == [77 + (i + 1) * shape.step for i in range(20)]


def test_half_precision_does_not_change_the_continuation() -> None:
    model = SHAPES["tiny-qwen3"].build(16, mx.bfloat16)
    assert {int(token) for token, _ in generate_step(mx.array([5, 9, 77]), model, max_tokens=20)} == {77}


@pytest.mark.parametrize("tokens_per_round", [1, 1.5, 2, 4, 8, 15.9, 16])
def test_survival_and_pattern_give_the_tokens_per_round_asked_for(tokens_per_round: float) -> None:
    block = 16
    s = survival(tokens_per_round, block)
    assert sum(s**i for i in range(block)) == pytest.approx(tokens_per_round, abs=1e-6)
    right, rounds, place = pattern(s, block, 8000, seed=3), 0, 0
    while place < len(right) - 2 * block:
        run = next((j for j in range(block - 1) if not right[place + j]), block - 1)
        place, rounds = place + run + 1, rounds + 1
    assert place / rounds == pytest.approx(tokens_per_round, rel=0.03)
    assert sum(right) / len(right) == pytest.approx(s, abs=0.02)


@pytest.mark.parametrize(("name", "rows"), [(name, 1) for name in TINY] + [("tiny-qwen3.5", 3)])
def test_all_arms_generate_the_same_at_the_acceptance_set(bench: Any, name: str, rows: int) -> None:
    made = bench(name)
    requests = made.rows(rows, 32, 48, accept=(3,), repeats=2)
    continuation = made.continuation(requests, accept=(3,))
    arms = made.arms(rows, requests, continuation)
    assert list(arms) == [arm for arm in ARMS if rows == 1 or arm not in ("mlx-stream", "dflash")]
    cells = steady(arms, requests, 48, 2, made.expected(continuation))
    for arm, cell in cells.items():
        assert cell.error is None, arm
        assert len(cell.samples) == 2
        for sample in cell.samples:  # a turn that takes too long ends after enough rounds
            assert sample.tokens >= 24 * rows or (sample.rounds >= ENOUGH and sample.seconds > PATIENCE), arm
        wanted = 3 if arm in ("full-depth", "dflash") else 1
        assert arm == "adaptive" or cell.tokens_per_round == pytest.approx(wanted, rel=0.2), arm


def test_rows_of_mixed_acceptance_gain_what_is_asked_of_each(bench: Any) -> None:
    made = bench("tiny-qwen3")
    requests = made.rows(4, 32, 64, MIXED, repeats=1)
    continuation = made.continuation(requests, MIXED)
    session = made.arms(4, requests, continuation)["full-depth"]().open(requests)
    before = [len(text) for text in session.texts]
    for _ in range(24):
        session.advance()
    gained = [(len(text) - length) / 24 for text, length in zip(session.texts, before, strict=True)]
    assert gained == pytest.approx(MIXED, rel=0.2)
    assert session.flaw() is None
    session.close()
    cells = steady(made.arms(4, requests, continuation), requests, 64, 1, made.expected(continuation))
    assert [cell.error for cell in cells.values()] == 4 * [None]


def test_whole_runs_give_every_token(bench: Any) -> None:
    made = bench("tiny-qwen3")
    requests = made.dataset(10, 32, 32)
    continuation = made.continuation(requests, accept=(4,))
    cells = whole(made.arms(3, requests, continuation), requests, 2, made.expected(continuation))
    for cell in cells.values():
        assert cell.error is None
        assert [sample.tokens for sample in cell.samples] == 2 * [sum(r.sampling.max_tokens for r in requests)]
    assert cells["mlx-batch"].tokens_per_round is None
    assert 2 < (cells["full-depth"].tokens_per_round or 0) <= 4.5


def test_other_tokens_than_expected_fail_a_cell(bench: Any) -> None:
    made = bench("tiny-qwen3")
    requests = made.rows(1, 16, 16, accept=(2,), repeats=1)
    continuation = made.continuation(requests, accept=(2,))
    cells = steady(made.arms(1, requests, continuation, ("mlx-batch",)), requests, 16, 1, lambda request, text: False)
    assert cells["mlx-batch"].error == "request r0 generated other tokens than expected"
    assert not cells["mlx-batch"].samples


def test_a_failing_arm_leaves_its_reason_and_stops_nobody(bench: Any) -> None:
    made = bench("tiny-qwen3")
    requests = made.rows(2, 16, 16, accept=(2,), repeats=1)
    continuation = made.continuation(requests, accept=(2,))

    def missing() -> Any:
        raise BenchError("dflash is not installed")

    class Exhausted:
        alone, tokens_per_round = False, None

        def open(self, requests: Any) -> Any:
            raise RuntimeError("[malloc] out of memory\nsecond line")

    arms: Any = {"dflash": missing, "broken": Exhausted, **made.arms(2, requests, continuation, ("mlx-batch",))}
    cells = steady(arms, requests, 16, 1)
    assert cells["dflash"].error == "dflash is not installed"
    assert cells["broken"].error == "RuntimeError: [malloc] out of memory"
    assert cells["mlx-batch"].samples
    table = Table("title", lines=[Line("2", cells)])
    assert table.failed
    assert "2 dflash: dflash is not installed" in table.failures


def test_a_twin_shares_weights_but_not_modules(bench: Any) -> None:
    model = bench("tiny-qwen3.5").model
    other = twin(model)
    layers, others = model.language_model.model.layers, other.language_model.model.layers
    assert others[0] is not layers[0]
    assert others[0].mlp.up_proj.weight is layers[0].mlp.up_proj.weight
    tokens = mx.array([[1, 2, 3]])
    assert mx.array_equal(model(tokens), other(tokens))


def test_template_counts_what_goes_through_the_target(bench: Any) -> None:
    (fact,) = template_table(bench("tiny-qwen3"), 8, 100, rows=2, accept=(4,)).facts
    assert fact["prompt tokens"] == 7 * 100 + fact["template and suffixes"]
    assert fact["prefilled"] == fact["prompt tokens"] - 7 * 64  # whole pages are shared


class Paced:
    """A session whose rounds are some work for the device, queued one round ahead after the host has slept."""

    def __init__(self, work: float, sleep: float):
        self.filler, self.sleep = Filler(work), sleep
        self.texts: list[list[int]] = [[]]
        self.last: Any = None

    def advance(self) -> int:
        time.sleep(self.sleep)
        queued = self.filler.queue()
        if self.last is not None:
            mx.eval(self.last)
        self.last = queued
        return 1

    def flaw(self) -> None:
        return None

    def close(self) -> None:
        synchronize()


def test_idle_share_is_what_a_filled_round_does_not_explain() -> None:
    # 20 ms a round; with a filler of 30 ms, 45 ms: the device alone needs 15.
    assert Idle([(0.020, 0.045, 0.030)]).share == pytest.approx(0.25)


def test_idle_share_sees_a_host_that_sleeps() -> None:
    # The truth is about 0.8 and 0. On a CPU that others use timings scatter widely, so a few attempts are allowed.
    assert any(idle(work=0.006, sleep=0.03) > 0.4 for _ in range(4))
    assert any(idle(work=0.02, sleep=0.004) < 0.3 for _ in range(4))


def idle(work: float, sleep: float) -> float:
    return measure_idle(Paced(work, sleep), rounds=3, repeats=3).share


def test_a_full_disk_takes_nothing_that_was_written_before(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    write(file, {}, [Table("first")])
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(file, {}, [Table("first"), Table("second" * 100)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_tables_and_json_carry_medians_ratios_and_samples(tmp_path: Path) -> None:
    fast = Cell([Sample(200, 20, 1.0), Sample(300, 30, 1.0), Sample(100, 10, 1.0)], prefill=0.5, tokens_per_round=10.0)
    slow = Cell([Sample(100, 100, 1.0)] * 3)
    assert ratios(fast, slow) == (2.0, 1.0, 3.0)
    table = Table("speeds", axis="rows", lines=[Line("8", {"mlx-batch": slow, "adaptive": fast}, at=8)])
    assert "200 (10.0/round) 2.00x [1.00 3.00]" in table.grids[0][1]
    write(tmp_path / "out.json", {"rows": [8]}, [table])
    written = json.loads((tmp_path / "out.json").read_text())
    cell = written["tables"][0]["lines"][0]["cells"]["adaptive"]
    assert cell["ratio"] == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert cell["samples"][1] == {"tokens": 300, "rounds": 30, "seconds": 1.0}
    assert written["machine"]["versions"]["mlx-lm"]


def test_the_suite_makes_every_table(tmp_path: Path) -> None:
    small = replace(suite.TINY, rows=(1,), hybrid_rows=(1,), dataset_rows=(2,), requests=4, repeats=1)
    tables = list(small.run(tmp_path, tuple(name for name in suite.TABLES if name not in ("idle", "grid-2", "grid-1"))))
    assert len(tables) == 5
    assert not any(table.failed for table in tables)


def test_a_real_pair_answers_prompts_in_every_arm(bench: Any, cache: Path, boxed_model: Path) -> None:
    pair = Real(resolve("smollm2-135m"), cache)
    pair.cost = bench("tiny-qwen3").cost  # which depths it chooses does not matter here, and its own takes long
    requests = pair.requests([ChatPrompt(({"role": "user", "content": "Say hi."},)), "One, two, three,"], 4)
    table = pair_table(pair, requests, [2], 4, 1, ("mlx-batch", "adaptive", "dflash", "dflash-mlx", "vllm-mlx"))
    cells = table.lines[0].cells
    for arm in ("mlx-batch", "adaptive", "dflash"):
        assert cells[arm].error is None
        assert cells[arm].samples[0].tokens == cells["mlx-batch"].samples[0].tokens
    assert cells["dflash-mlx"].error == "dflash-mlx is not installed"
    assert shutil.which("vllm-mlx") or (cells["vllm-mlx"].error or "").startswith("vllm-mlx is not installed")
    prompts = [request.tokens for request in requests]
    one, two, again = pair.dataset(prompts, 3, 8)
    assert {one.tokens, two.tokens} == set(prompts)
    assert one.tokens == again.tokens
    (line,) = pair_dataset_table(pair, prompts, 3, [2], 8, 1, ("adaptive", "mlx-batch")).lines
    assert [cell.error for cell in line.cells.values()] == [None, None]
    asked = sum(request.sampling.max_tokens for request in (one, two, again))
    assert line.facts == {"requests": 3, "prompt tokens": sum(map(len, prompts)) + len(one.tokens), "new tokens": asked}
    assert list(line.cells) == ["mlx-batch", "adaptive"]


def test_a_shape_needs_room_beside_its_weights_and_takes_none_to_find_out() -> None:
    mixture, before = Weights("qwen3.5-35b-a3b", 4), mx.get_active_memory()
    assert unfit(mixture, 32 << 30) is None
    assert unfit(mixture, 24 << 30) == "its weights of 19.1 GiB leave rows no room in the 24.0 GiB here"
    assert mx.get_active_memory() - before < 1 << 20


@pytest.mark.compiles
def test_wall_times_are_one_table_of_the_models_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.bench.wall_time.device_limit", lambda: 4 << 30)
    shapes = (Weights("tiny-qwen3"), Weights("qwen3-4b"), Weights("tiny-qwen3.5", 16 if HOPPER else 4))
    timed = WallTime(shapes=shapes, requests=9, rows=2, context=16, tokens=32)
    grown = timed.run(tmp_path, timed.models[1:], [], ("mlx-batch", "adaptive", "dflash"))
    table = next(grown)
    assert [line.label for line in table.lines] == ["tiny-qwen3, 2 rows"]  # it can be kept before the others have run
    assert all(each is table for each in grown)
    assert [line.label for line in table.lines] == ["tiny-qwen3, 2 rows", f"{shapes[2].name}, 2 rows"]
    assert not table.failed
    why = "would take a CPU hours" if mx.default_device() == mx.cpu else "leave rows no room in the 4.0 GiB here"
    assert table.notes == [f"qwen3-4b: skipped, its weights of 8.5 GiB {why}"]
    for line in table.lines:
        assert line.cells["mlx-batch"].samples[0].tokens == line.facts["new tokens"]
        assert line.cells["dflash"].requests == 1
    text = " ".join(table.grids[0][1])
    assert "s, " in text
    assert "for the first 1, " in text
