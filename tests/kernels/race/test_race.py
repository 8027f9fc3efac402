"""The race: what is right and fastest wins, what fails or disagrees is dropped, results are kept."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest

from draftmill.kernels.gpu.source import Kernel
from draftmill.kernels.race.contestants import (
    AttentionShape,
    ChoiceShape,
    OperationShape,
    ProductShape,
    RecurrentShape,
    contests,
)
from draftmill.kernels.race.keys import KERNEL, STOCK
from draftmill.kernels.race.race import Call, Contest, Form, race, read, run
from draftmill.kernels.recurrent.convolution import Heads
from tests.kernels.emulator import on_cpu
from tests.kernels.forms import EMULATED

SHAPES = [  # and how many contests they have
    (AttentionShape(2, 1, 64, mx.float32), 16),
    (RecurrentShape(Heads(1, 2, 32, 16), 4, mx.float32), 4),
    (ProductShape(64, 24, 32, 4, mx.float32), 3),
    (ChoiceShape(600, mx.bfloat16), 3),
]


def sleeping(seconds: float, value: float = 1.0) -> Form:
    def call() -> list[mx.array]:
        time.sleep(seconds)
        return [mx.full((4,), value)]

    return lambda round: call


def contest(**forms: Form) -> Contest:
    return Contest(("sleep", 4), mx.float32, lambda: forms)


def test_the_fastest_wins_and_the_hopeless_run_twice() -> None:
    calls: list[int] = []

    def hopeless(round: int) -> Call:
        calls.append(round)
        return sleeping(0.02)(round)

    result = run(contest(stock=sleeping(0.004), slow=hopeless, fast=sleeping(0.001)))
    assert result.winner == "fast"
    assert result.milliseconds["fast"] < result.milliseconds["stock"] < result.milliseconds["slow"]
    assert calls == [0, 1, 2]  # one to check, two to time


def test_an_interruption_does_not_decide() -> None:
    def interrupted(round: int) -> Call:
        return sleeping(0.05 if round == 1 else 0.001)(round)

    assert run(contest(stock=sleeping(0.004), fast=interrupted)).winner == "fast"


def test_what_is_prepared_once_a_round_counts_once_a_round() -> None:
    def preparing(round: int) -> Call:
        time.sleep(0.005)
        return sleeping(0.001)(round)

    result = run(contest(stock=sleeping(0.002), prepared=preparing))
    assert result.winner == "prepared"


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (sleeping(0, 1.5), "disagrees with its reference by 0.5"),
        (sleeping(0, float("nan")), "disagrees"),
        (lambda round: lambda: [mx.ones((5,))], r"gives \(5,\) for \(4,\)"),
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


@EMULATED
def test_a_kernel_that_does_not_compile_is_dropped() -> None:
    def launch(kernel: Kernel, *given):
        return on_cpu(replace(kernel, body=kernel.body.replace("=", "= nonsense +", 1)), *given)

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
