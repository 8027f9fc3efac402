"""The race: what is right and fastest wins, what fails or disagrees is dropped, results are kept."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import pytest

from draftmill.kernels.attention.ragged_attention import LEAST_KEYS
from draftmill.kernels.gpu.source import Input, Kernel, Memory
from draftmill.kernels.products.quantisation import Quantisation
from draftmill.kernels.race.attention_checks import checks
from draftmill.kernels.race.contestants import (
    COLD,
    AttentionShape,
    ChoiceShape,
    ConvolutionShape,
    OperationShape,
    ProductShape,
    RecurrentShape,
    contests,
)
from draftmill.kernels.race.experts import ExpertsShape
from draftmill.kernels.race.keys import KERNEL, STOCK, ExpertsKind
from draftmill.kernels.race.low_rank import LowRankShape
from draftmill.kernels.race.race import CALLS, ENOUGH, REPEATS, Call, Contest, Form, Outputs, after, race, read, run
from draftmill.kernels.recurrent.convolution import Heads
from draftmill.kernels.variants import Recorder
from tests.kernels.emulator import on_cpu
from tests.kernels.forms import EMULATED

SHAPES = [  # and how many contests they have
    (AttentionShape(2, 1, 64, mx.float32), 16),
    (RecurrentShape(Heads(1, 2, 32, 16), 4, mx.float32), 4),
    (ConvolutionShape(12, 3, mx.float32), 2),
    (ProductShape(64, 24, Quantisation(32, 4), mx.float32), 5),
    (ExpertsShape(ExpertsKind(64, 32, 6, Quantisation(32, 4)), 2, mx.float32), 2),
    (LowRankShape(64, 24, (0, 0, 1), mx.float32), 3),
    (ChoiceShape(600, mx.bfloat16), 3),
]


def sleeping(seconds: float, value: float = 1.0) -> Form:
    return giving(lambda: mx.full((4,), value), seconds)


def giving(output: Callable[[], mx.array], seconds: float = 0.0) -> Form:
    def call(layer: int, before: Outputs) -> Outputs:
        time.sleep(seconds)
        return [output()]

    return Form(lambda round: call)


def contest(**forms: Form) -> Contest:
    return Contest(("sleep", 4), mx.float32, lambda: forms)


def test_the_fastest_wins_and_the_hopeless_run_twice() -> None:
    calls: list[int] = []

    def hopeless(round: int) -> Call:
        calls.append(round)
        return sleeping(0.02).round(round)

    result = run(contest(stock=sleeping(0.004), slow=Form(hopeless), fast=sleeping(0.001)))
    assert result.winner == "fast"
    assert result.milliseconds["fast"] < result.milliseconds["stock"] < result.milliseconds["slow"]
    assert calls == [0, 1, 2]  # one to check, two to time


def test_what_takes_long_is_timed_twice() -> None:
    rounds: list[int] = []

    def long(round: int) -> Call:
        rounds.append(round)
        return sleeping(ENOUGH / 2 / CALLS / 1000 + 0.001).round(round)

    run(contest(stock=Form(long)))
    assert rounds == [0, 1, 2]


def test_an_interruption_does_not_decide() -> None:
    def interrupted(round: int) -> Call:
        return sleeping(0.05 if round == 1 else 0.001).round(round)

    assert run(contest(stock=sleeping(0.004), fast=Form(interrupted))).winner == "fast"


def test_what_is_prepared_once_a_round_counts_once_a_round() -> None:
    def preparing(round: int) -> Call:
        time.sleep(0.005)
        return sleeping(0.001).round(round)

    result = run(contest(stock=sleeping(0.002), prepared=Form(preparing)))
    assert result.winner == "prepared"


def test_each_layer_of_a_round_waits_for_the_one_before_it() -> None:
    layers: list[tuple[int, Outputs, Outputs]] = []

    def call(layer: int, before: Outputs) -> Outputs:
        layers.append((layer, before, [after(mx.ones(4), before) + layer, mx.zeros(3)]))
        return layers[-1][2]

    run(contest(stock=Form(lambda round: call)))
    rounds = layers[2:]  # the first two are the check
    assert [layer for layer, _, _ in rounds] == [*range(CALLS)] * REPEATS
    for (_, _, outputs), (layer, before, _) in pairwise(rounds):
        assert before == (outputs if layer else ())


def test_waiting_changes_nothing_and_reads_what_was_before() -> None:
    x = mx.random.normal((5, 3, 4)).astype(mx.bfloat16)
    before = [mx.full((2, 2), float("nan")), mx.sqrt(mx.full((3,), 1e30)), mx.zeros((4,), mx.int32)]
    waiting = after(x, before)
    drawn = io.StringIO()
    mx.export_to_dot(drawn, waiting)
    assert "Sqrt" in drawn.getvalue()
    assert waiting.dtype == x.dtype
    assert mx.array_equal(waiting, x)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (sleeping(0, 1.5), "disagrees with its reference by 0.5"),
        (sleeping(0, float("nan")), "disagrees"),
        (giving(lambda: mx.ones((5,))), r"gives \(5,\) for \(4,\)"),
    ],
)
def test_what_disagrees_is_dropped_with_one_warning(
    form: Form, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    several = [replace(contest(stock=sleeping(0.001), kernel=form), key=("sleep", i)) for i in range(3)]
    with caplog.at_level(logging.WARNING):
        results = race(several, tmp_path / "races.json")
    assert {result.winner for result in results.values()} == {"stock"}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert re.search(f"sleep: kernel is dropped, stock MLX runs: it {reason}", caplog.text)


def test_a_form_must_be_right_in_every_check() -> None:
    right, wrong = (lambda: [mx.ones(2)]), (lambda: [mx.zeros(2)])
    stock = replace(sleeping(0.001), checks=(right, right))
    result = run(contest(stock=stock, late=replace(sleeping(0), checks=(right, wrong))))
    assert result.winner == "stock"
    assert "disagrees with its reference by 1" in result.dropped["late"]


def test_rounds_that_attention_is_checked_in_have_all_that_masks_depend_on() -> None:
    for queries in (1, 16, 256):
        every = checks(queries)
        spans = [span for check in every for span in check.packing.spans]
        assert {span.exact for span in spans} == {True, False}
        assert {check.window is None for check in every} == {True, False}
        assert {check.packing.limits is None for check in every} == {True, False}
        assert max(span.count for span in spans) >= min(queries, 64)
        assert min(span.length for span in spans) < min(filter(None, (check.window for check in every))) * 2
        ends = [span.length for span in spans]
        assert max(ends) >= 2 * LEAST_KEYS or queries > 16  # so that keys are split, too


@EMULATED
@pytest.mark.parametrize("column", [0, 1], ids=["the window", "positions where the bound is not exact"])
def test_a_kernel_that_ignores_part_of_the_mask_is_dropped(column: int) -> None:
    def launch(kernel: Kernel, inputs: Sequence[Input], *rest):
        if kernel.name == "attend":
            place = kernel.inputs.index("sees")
            given = inputs[place]
            assert isinstance(given, mx.array)
            sees = mx.array(given)
            sees[:, column] = (0, 1 << 20)[column]
            inputs = [*inputs[:place], sees, *inputs[place + 1 :]]
        return on_cpu(kernel, inputs, *rest)

    decoding = next(contests([AttentionShape(2, 1, 64, mx.float32)], launch))
    assert decoding.key[-3:] == (1, 1, 512)  # one query, which otherwise sees all keys of its row
    assert "disagrees" in run(decoding, force=KERNEL).dropped[KERNEL]


@pytest.mark.parametrize(("sinks", "cap"), [(True, None), (False, 50.0)])
def test_contests_check_sinks_and_caps(sinks: bool, cap: float | None) -> None:
    recorder = Recorder()
    form = next(contests([AttentionShape(2, 1, 64, mx.float32, sinks, cap)], recorder)).make()[KERNEL]
    for check in form.checks:
        check()
    attended = [dict(constants) for kernel, _, constants in recorder.variants if kernel.name == "attend"]
    assert {(each["SINKS"], each["CAPPED"]) for each in attended} == {(sinks, cap is not None)}


SIZES = [
    ProductShape(512, 1 << 17, Quantisation(64, 4), mx.bfloat16),
    ProductShape(512, 256, Quantisation(64, 4), mx.float32),
    AttentionShape(8, 8, 64, mx.float16),
]


@pytest.mark.parametrize("shape", SIZES, ids=lambda shape: f"{type(shape).__name__}-{shape.dtype}")
def test_contests_take_little_more_memory_than_their_inputs(shape: OperationShape) -> None:
    recorder = Recorder()

    def launch(kernel: Kernel, inputs: Sequence[Input], *rest) -> list[mx.array]:
        mx.eval([each.head if isinstance(each, Memory) else each for each in inputs])  # as if the kernel read them
        return recorder(kernel, inputs, *rest)

    largest = list(contests([shape], launch))[-1 if isinstance(shape, ProductShape) else 11]
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    forms = largest.make()
    inputs = mx.get_active_memory() - before
    assert mx.get_peak_memory() - before < 1.3 * inputs + (64 << 20)
    if isinstance(shape, ProductShape):
        assert inputs < COLD + 3 * shape.lines * shape.length * shape.quantisation.bits // 8
    else:
        assert largest.key[-3:] == (32, 16, 4096)
    del forms


@EMULATED
def test_a_kernel_that_does_not_compile_is_dropped() -> None:
    def launch(kernel: Kernel, *given):
        if kernel.name == "attend":
            kernel = replace(kernel, body=kernel.body.replace("=", "= nonsense +", 1))
        return on_cpu(kernel, *given)

    for one in contests([AttentionShape(2, 1, 64, mx.float32)], launch):
        result = run(one)
        assert result.winner != KERNEL
        assert result.dropped[KERNEL].startswith("it fails: ")
        assert "\n" not in result.dropped[KERNEL]
        break


def test_results_are_kept_and_a_forced_form_is_not(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "races.json"
    made: list[int] = []

    def make(forms: Mapping[str, Form]) -> Mapping[str, Form]:
        made.append(1)
        return forms

    forms = {"stock": sleeping(0.001), "kernel": sleeping(0.003)}
    one = Contest(("sleep", 4), mx.float32, partial(make, forms))
    assert race([one], cache, force="kernel")[one.key].winner == "kernel"
    assert race([one], cache)[one.key].winner == "stock"
    first = race([one], cache)[one.key]
    assert (len(made), read(cache)) == (2, {one.key: first})
    assert race([one], cache, force="kernel")[one.key].winner == "kernel"
    cache.write_text("[1, 2")
    assert race([one], cache)[one.key].winner == "stock"
    assert len(made) == 4


def test_a_forced_form_that_disagrees_does_not_run(tmp_path: Path) -> None:
    one = contest(stock=sleeping(0.001), kernel=sleeping(0, 2.0))
    assert race([one], tmp_path / "races.json", force="kernel")[one.key].winner == "stock"


@EMULATED
@pytest.mark.parametrize(("shape", "count"), SHAPES, ids=lambda value: type(value).__name__)
def test_every_kernel_agrees_with_its_reference_in_a_heat(shape: OperationShape, count: int) -> None:
    every = list(contests([shape], on_cpu))
    assert len({one.key for one in every}) == count
    for one in every:
        assert next(iter(one.make())) == STOCK
        if one.key[-1] == 4096 or one.key[5:6] == (32,):
            continue  # keys, as of the shorter ones, and slow where it is emulated
        result = run(one, force=KERNEL)
        assert (result.winner, result.dropped) == (KERNEL, {})
