"""Each check of the self-test finds the fault that it is there for, and nothing on a sound machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from draftmill.engine.models.targets import adapt
from draftmill.engine.models.targets.transformer import Transformer
from draftmill.engine.selftest.boxed_pair import BoxedPair
from draftmill.engine.selftest.check import Check, Skipped, Wrong
from draftmill.engine.selftest.checks import kernel_checks
from draftmill.engine.selftest.kernels import Known, compare_kernels, prove_pools
from draftmill.engine.selftest.published import PUBLISHED
from draftmill.engine.selftest.tokens import FAMILIES, Greedy, compare_family, compare_tokens, greedy, judged
from draftmill.kernels.choose.choose import fits as choice_fits
from draftmill.kernels.fused.add_norm import fits as norm_fits
from draftmill.kernels.fused.rotary import Layout
from draftmill.kernels.fused.rotary import fits as rotary_fits
from draftmill.kernels.gpu.source import Input, Kernel, Memory
from draftmill.kernels.pages.sizes import PAGE
from draftmill.kernels.products.quantisation import Quantisation
from draftmill.kernels.race.contestants import (
    AttentionShape,
    ChoiceShape,
    ConvolutionShape,
    NormShape,
    OperationShape,
    ProductShape,
    RecurrentShape,
    RotaryShape,
)
from draftmill.kernels.race.low_rank import LowRankShape
from draftmill.kernels.recurrent.convolution import Heads
from draftmill.kernels.recurrent.recurrence import gated_convolution_fits
from tests.engine.drafting.test_speculation import random_draft
from tests.engine.planted import ahead
from tests.engine.small import NumberTokenizer, llama_model, requests
from tests.kernels.emulator import on_cpu
from tests.kernels.forms import EMULATED

SINGLE = mx.float32
SHAPES: list[OperationShape] = [
    NormShape(64, SINGLE),
    RotaryShape(Layout(4, 2, 64, 64, 1e-6), SINGLE),
    ProductShape(64, 24, Quantisation(32, 4), SINGLE),
    ChoiceShape(96, SINGLE),
    AttentionShape(2, 1, 64, SINGLE, sinks=True),
    RecurrentShape(Heads(1, 2, 32, 16), 4, SINGLE),
    ConvolutionShape(12, 3, SINGLE),
]
NAMES = {"add_norm": "add norm", "rotate": "rotary", "quantized_matmul": "quantised product", "choose": "choose"}
NAMES |= {"attend": "attention", "gated_delta": "gated delta", "convolve": "convolution", "store": "pages"}


def wrong_in(name: str) -> Callable[..., list[mx.array]]:
    """A launch in which one kernel gives something else, or writes something else."""

    def launch(kernel: Kernel, inputs: Sequence[Input], *rest: Any) -> list[mx.array]:
        if kernel.name != name:
            return on_cpu(kernel, inputs, *rest)
        if name == "store":  # its output says only that it has run
            inputs = [mx.zeros_like(x) if isinstance(x, mx.array) and x.dtype == mx.uint64 else x for x in inputs]
            return on_cpu(kernel, inputs, *rest)
        return [mx.roll(output, 1, -1) + 1 if output.ndim else output for output in on_cpu(kernel, inputs, *rest)]

    return launch


def kernels(shapes: Sequence[OperationShape], launch: Callable[..., list[mx.array]], seconds: float = 600) -> str:
    return compare_kernels(lambda: shapes, Known.within(seconds), launch)


@EMULATED
def test_sound_kernels_agree_and_none_is_compared_twice() -> None:
    once, again = kernel_checks({"one": lambda: SHAPES, "again": lambda: SHAPES[:2]}, 600, on_cpu)
    found = once.finding()
    assert found.verdict == "ok", found
    assert int(found.found.split()[0]) > len(SHAPES)
    assert again.finding().found == "0 variants agree with their references"


@EMULATED
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_kernel_is_named(name: str) -> None:
    shapes = {
        "quantized_matmul": SHAPES[2:3],
        "attend": SHAPES[4:5],
        "store": SHAPES[4:5],
        "gated_delta": SHAPES[5:6],
        "convolve": SHAPES[5:6],
    }.get(name, SHAPES[:4])
    with pytest.raises(Wrong, match=f"{NAMES[name]}: it disagrees with its reference by"):
        kernels(shapes, wrong_in(name))


@EMULATED
def test_a_wrong_kernel_of_another_layer_is_named_by_that_layer() -> None:
    with pytest.raises(Wrong, match=r"^gated convolution: it disagrees with its reference by"):
        kernels(SHAPES[6:], wrong_in("convolve"))


def test_a_kernel_that_fails_is_wrong() -> None:
    def failing(*given: Any) -> list[mx.array]:
        raise RuntimeError("no such type\nand more")

    with pytest.raises(Wrong, match=r"add norm: it fails: no such type$"):
        kernels(SHAPES[:1], failing)


def test_what_there_is_no_time_for_is_not_ok() -> None:
    with pytest.raises(Skipped, match="time was over after 0 variants"):
        kernels(SHAPES[:1], on_cpu, seconds=-1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_kernels_are_made_for_the_published_shapes(name: str) -> None:
    for dtype in (mx.float16, mx.bfloat16):
        for shape in PUBLISHED[name].shapes(dtype):
            match shape:
                case RotaryShape(layout, dtype):
                    assert rotary_fits(layout, dtype)
                case NormShape(size, dtype):
                    assert norm_fits(mx.zeros((1, size), dtype))
                case ChoiceShape(vocabulary, dtype):
                    assert choice_fits(vocabulary, dtype)
                case ProductShape():
                    assert shape.length % shape.quantisation.group_size == 0
                case LowRankShape():
                    assert shape.length % 4 == 0
                case ConvolutionShape(channels, _, dtype):
                    assert gated_convolution_fits(channels, dtype)
                case _:
                    assert isinstance(shape, AttentionShape | RecurrentShape)


@EMULATED
def test_a_pool_that_is_copied_is_wrong() -> None:
    def copying(kernel: Kernel, inputs: Sequence[Input], *rest: Any) -> list[mx.array]:
        if kernel.name == "store":
            pools = [each for each in inputs if isinstance(each, Memory)]
            inputs = [*(Memory.of(mx.array(np.array(pool.whole)), PAGE) for pool in pools), *inputs[len(pools) :]]
        return on_cpu(kernel, inputs, *rest)

    finding = Check("pools", lambda: prove_pools(copying)).finding()
    assert (finding.verdict, finding.found) == ("wrong", "round 1 of 12 read other keys than it wrote")


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="it has a GPU")
def test_without_a_gpu_kernels_and_pools_are_skipped() -> None:
    for check in (*kernel_checks({"one": lambda: SHAPES}, 600), Check("pools", prove_pools)):
        assert check.finding().verdict == "skipped"


def turned_wrongly(target: Transformer) -> None:
    planted: Any = target
    planted.turns = ahead(target)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_that_are_rotated_wrongly_are_wrong(family: str) -> None:
    with pytest.raises(Wrong, match=r"^logits off by"):
        compare_family(family, turned_wrongly)


@pytest.fixture(scope="module")
def pair() -> BoxedPair:
    """A small pair in the boxed one's place."""
    model, tokenizer = llama_model(), NumberTokenizer()
    return BoxedPair(model, tokenizer, adapt(model), random_draft())


def texts(pair: BoxedPair) -> tuple[list[Any], list[Greedy]]:
    asked = [replace(r, sampling=replace(r.sampling, ignore_eos=True)) for r in requests(8, max_tokens=10)]
    return asked, [greedy(pair.model, request) for request in asked]


@pytest.mark.parametrize("depth", [0, None], ids=["no drafts", "drafts"])
def test_sound_tokens_are_those_of_mlx_lm(pair: BoxedPair, depth: int | None) -> None:
    assert compare_tokens(pair, *texts(pair), depth).startswith("float32: 8 of 8 rows are mlx-lm's, 80 tokens in all")


@pytest.mark.parametrize("depth", [0, None], ids=["no drafts", "drafts"])
def test_tokens_of_rows_that_are_rotated_wrongly_are_wrong(pair: BoxedPair, depth: int | None) -> None:
    target = adapt(pair.model)
    turned_wrongly(target)
    with pytest.raises(Wrong, match=r"row \d of 8, token \d+ is \d+, not \d+: .* behind in mlx-lm's logits"):
        compare_tokens(replace(pair, target=target), *texts(pair), depth)


def test_drafts_that_never_come_are_wrong(pair: BoxedPair) -> None:
    nothing: Any = None
    with pytest.raises(Wrong, match="nothing was drafted"):
        compare_tokens(replace(pair, draft=nothing), *texts(pair), None)


def test_a_near_tie_is_no_disagreement() -> None:
    model = llama_model()
    (asked, *_), (expected, *_) = texts(BoxedPair(model, NumberTokenizer(), adapt(model), random_draft()))
    best, other = expected.tokens[0], (expected.tokens[0] + 1) % 96
    model.lm_head.weight[other] = model.lm_head.weight[best] * (1 - 1e-6)
    pair = BoxedPair(model, NumberTokenizer(), adapt(model), random_draft())
    first = replace(asked, sampling=replace(asked.sampling, max_tokens=1))
    expected = greedy(model, first)
    assert expected.tokens == [best]
    assert judged(pair, first, expected, [other]) == (1, None)
    assert judged(pair, first, expected, [(best + 2) % 96]).wrong
    assert judged(pair, first, expected, []).wrong == "it has 0 tokens, mlx-lm's 1"


def test_a_check_that_fails_in_another_way_is_wrong() -> None:
    def fail() -> str:
        raise OSError("the device is gone\nand more")

    finding = Check("any", fail).finding()
    assert (finding.verdict, finding.found) == ("wrong", "it fails: OSError: the device is gone")
