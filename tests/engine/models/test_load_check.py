"""The load check: sound models pass, planted faults are caught and named, what was found is remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
import pytest

from draftmill.engine.models.boxed import ModelError
from draftmill.engine.models.kernels_for import shapes
from draftmill.engine.models.load_check import Reference, assure, distances, known_verdicts, run, settle, turns
from draftmill.engine.models.targets import adapt
from draftmill.engine.models.targets.transformer import Transformer
from draftmill.kernels.gpu.launch import on_gpu
from draftmill.kernels.gpu.source import Kernel, Launch
from draftmill.kernels.operations import KERNEL, Operations
from draftmill.kernels.race.contestants import contests
from draftmill.kernels.variants import Recorder
from tests.engine.models.gemma4 import gemma4_large_model, gemma4_model, gemma4_moe_model
from tests.kernels.emulator import compiler, on_cpu

from ..planted import ShiftedMask, ahead, one_place
from ..small import (
    gemma2_model,
    gemma3_model,
    gpt_oss_model,
    lfm2_model,
    llama_model,
    quantised,
    qwen2_model,
    qwen3_5_model,
    qwen3_5_moe_model,
    qwen3_model,
    qwen3_moe_model,
    qwen3_next_model,
    smollm3_model,
)

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": llama_model,
    "llama-sliding": lambda: llama_model(
        layer_types=["full_attention", "sliding_attention", "sliding_attention"], sliding_window=16
    ),
    "gemma2": gemma2_model,
    "gemma3": gemma3_model,
    "gemma4": gemma4_model,
    "gemma4-large": gemma4_large_model,
    "gemma4-moe": gemma4_moe_model,
    "gpt-oss": gpt_oss_model,
    "lfm2": lfm2_model,
    "qwen2": qwen2_model,
    "qwen3-next": qwen3_next_model,
    "smollm3": smollm3_model,
    "qwen3": qwen3_model,
    "qwen3-4bit": lambda: quantised(qwen3_model()),
    "qwen3-moe": qwen3_moe_model,
    "qwen3.5": qwen3_5_model,
    "qwen3.5-moe": qwen3_5_moe_model,
}

GPU = mx.default_device() != mx.cpu
LAUNCH: Launch = on_gpu if GPU else on_cpu
KERNELS = pytest.mark.skipif(not GPU and compiler() is None, reason="kernels are emulated by a C++ compiler: none here")


@pytest.mark.parametrize("family", FAMILIES)
def test_sound_models_pass(family: str) -> None:
    verdict = settle(adapt(FAMILIES[family]()))
    assert verdict.good
    assert verdict.error < 2e-5 or GPU  # of float32 on a CPU; a GPU adds in another order
    assert verdict.dropped == ()


TWICE = 2.0
"""By so much more than mlx-lm's own half precision may this engine's be off from float32 (medians of a text)."""


@pytest.mark.skipif(not GPU, reason="half precision is for GPUs: MLX's CPU backend crawls, or cannot run it at all")
@pytest.mark.parametrize("kernels", [False, True], ids=["stock", "kernels"])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_as_near_to_float32_as_mlx_lms(family: str, dtype: mx.Dtype, kernels: bool) -> None:
    model, exact = FAMILIES[family](), FAMILIES[family]()
    model.set_dtype(dtype)
    exact.update(model.parameters())
    exact.set_dtype(mx.float32)
    target = adapt(model)
    reference, truth = Reference.of(target), Reference.of(adapt(exact))
    if kernels:
        every = contests(shapes(target, None), Recorder())
        target.operations = Operations({contest.key: KERNEL for contest in every if KERNEL in contest.make()}, LAUNCH)
    ours: dict[int, list[float]] = {}
    theirs: dict[int, list[float]] = {}
    for turn, begin, logits in run(target, reference.texts, turns(reference.chunk)):
        place = slice(begin, begin + logits.shape[0])
        ours.setdefault(turn.row, []).extend(distances(logits, truth.logits[turn.row][place]))
        theirs.setdefault(turn.row, []).extend(
            distances(reference.logits[turn.row][place], truth.logits[turn.row][place])
        )
    for row in ours:
        assert median(ours[row]) < TWICE * median(theirs[row]) + 1e-3, f"text {row + 1}"


@pytest.mark.parametrize("plant", [one_place, ahead])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_rotation_is_caught(family: str, plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target = adapt(FAMILIES[family]())
    monkeypatch.setattr(target, "turns", plant(target))
    with pytest.raises(ModelError, match="this engine's logits are not mlx-lm's on this machine"):
        settle(target)


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_mask_is_caught(family: str, by: int) -> None:
    target = adapt(FAMILIES[family]())
    reference = Reference.of(target)
    target.operations = ShiftedMask(by=by)
    verdict = reference.check(target)
    assert not verdict.good
    assert verdict.error > 3 * verdict.excused


@KERNELS
@pytest.mark.parametrize(
    ("kernel", "operation"),
    [
        ("attend", "attention"),
        ("rotate", "rotary"),
        ("add_norm", "add norm"),
        ("quantized_matmul", "quantised product"),
        ("gated_delta", "gated delta"),
        ("convolve", "convolution"),
        ("convolve", "gated convolution"),
    ],
)
def test_a_wrong_kernel_is_named_and_left_out(kernel: str, operation: str) -> None:
    target, launched = with_kernels(operation, kernel)
    verdict = settle(target)
    assert verdict.dropped == (operation,)
    assert verdict.good
    assert operation not in {key[0] for key in target.operations.winners}
    assert "add norm" in {key[0] for key in target.operations.winners} or operation == "add norm"
    launched.clear()
    Reference.of(target).check(target)
    assert kernel not in launched
    assert len(launched) >= 2  # the other kernels run on


def with_kernels(operation: str, wrong: str) -> tuple[Transformer, set[str]]:
    """A target with every kernel that fits, one of them wrong; and which of them have been launched. It has one layer
    of each kind, for emulated kernels are slow.
    """
    if operation in ("gated delta", "convolution"):
        model = qwen3_5_model(head_dim=256, linear_key_head_dim=32, num_hidden_layers=2, full_attention_interval=2)
    elif operation == "gated convolution":
        model = lfm2_model(hidden_size=256, block_dim=256, conv_bias=False, num_hidden_layers=2, full_attn_idxs=[1])
    else:
        model = quantised(qwen3_model(head_dim=64, num_hidden_layers=1))
    launched: set[str] = set()

    def launch(kernel: Kernel, *given: Any) -> list[mx.array]:
        launched.add(kernel.name)
        return [each * 1.25 if kernel.name == wrong else each for each in LAUNCH(kernel, *given)]

    target = adapt(model)
    every = contests(shapes(target, None), Recorder())
    winners = {contest.key: KERNEL for contest in every if KERNEL in contest.make()}
    target.operations = Operations(winners, launch, in_place=True)
    return target, launched


def test_logits_that_are_not_numbers_are_the_models_own_fault() -> None:
    model = llama_model()
    model.model.norm.weight = mx.full(64, float("nan"))
    with pytest.raises(ModelError, match="mlx-lm's own logits of this model are not numbers"):
        settle(adapt(model))


def test_what_was_found_is_remembered_by_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = adapt(llama_model())
    verdict = assure(target, "tiny", tmp_path)
    monkeypatch.setattr("draftmill.engine.models.load_check.settle", lambda target: pytest.fail("checked again"))
    assert assure(target, "tiny", tmp_path) == verdict
    ((name, known),) = known_verdicts(tmp_path).items()
    assert (name.partition(", ")[0], known) == ("tiny", verdict)
    with pytest.raises(pytest.fail.Exception):
        assure(target, "another", tmp_path)
    target.operations = Operations({("add norm", 64, "float32"): KERNEL})
    with pytest.raises(pytest.fail.Exception):  # other forms are another thing to check
        assure(target, "tiny", tmp_path)


def test_a_broken_file_of_verdicts_is_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "checks.json").write_text('{"x": 1')
    assert assure(adapt(llama_model()), "tiny", tmp_path).good
