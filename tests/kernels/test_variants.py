"""What is compiled as a pair is loaded: every variant that rounds can come to, and nothing twice."""

from __future__ import annotations

import logging
import random
from typing import Any

import mlx.core as mx
import pytest

from draftmill.kernels.attention.manner import Manner
from draftmill.kernels.fused.rotary import Layout
from draftmill.kernels.gpu.source import Kernel
from draftmill.kernels.operations import Operations
from draftmill.kernels.packing import Packing, Span
from draftmill.kernels.products.experts import Layer, Product
from draftmill.kernels.products.low_rank import ROOM, Chosen, LowRank
from draftmill.kernels.products.quantisation import Quantisation
from draftmill.kernels.products.tiling import TILINGS
from draftmill.kernels.race.contestants import (
    AttentionShape,
    ConvolutionShape,
    NormShape,
    OperationShape,
    ProductShape,
    RecurrentShape,
    RotaryShape,
    contests,
)
from draftmill.kernels.race.experts import ExpertsShape
from draftmill.kernels.race.keys import KERNEL, ExpertsKind
from draftmill.kernels.race.low_rank import LowRankShape
from draftmill.kernels.recurrent.convolution import Heads
from draftmill.kernels.recurrent.gated_delta import Tape
from draftmill.kernels.recurrent.plan import Place, Steps
from draftmill.kernels.variants import ZEROS, Recorder, compiled

HALF = mx.bfloat16
ATTENTION = [
    *(AttentionShape(*heads, HALF) for heads in [(32, 8, 128), (28, 4, 128), (16, 2, 256), (9, 3, 64), (2, 2, 128)]),
    AttentionShape(1, 1, 64, HALF, sinks=True),
    AttentionShape(64, 8, 64, HALF, sinks=True),
    AttentionShape(8, 4, 256, HALF, cap=50.0),
    AttentionShape(16, 2, 512, HALF),
]
RECURRENT = [Heads(16, 32, 128, 128), Heads(2, 4, 32, 8), Heads(1, 2, 32, 16)]
PRODUCTS = [ProductShape(2560, 9728, Quantisation(64, 4), HALF), ProductShape(64, 24, Quantisation(32, 8), mx.float32)]
ADAPTERS = LowRankShape(64, 32, (0, 0, 2, 2, 2), HALF)
EXPERTS = ExpertsShape(ExpertsKind(256, 64, 16, Quantisation(32, 4, "mxfp4")), 4, HALF)


def chosen(shape: OperationShape, launch: Recorder, form: str = KERNEL) -> Operations:
    return Operations({contest.key: form for contest in contests([shape])}, launch, in_place=True)


def known(shape: OperationShape, form: str = KERNEL) -> Recorder:
    recorder = Recorder()
    operations = chosen(shape, recorder, form)
    assert compiled(operations, [shape]) == operations
    return recorder


@pytest.mark.parametrize("shape", ATTENTION, ids=str)
def test_no_round_attends_in_a_variant_that_was_not_compiled(shape: AttentionShape) -> None:
    serving, draw = Recorder(), random.Random(shape.heads)
    operations = chosen(shape, serving)
    pool = operations.pool(1, shape.kv_heads, shape.dim, HALF)
    sinks = mx.zeros(shape.heads, HALF) if shape.sinks else None
    for _ in range(400):
        most = draw.choice([1, 2, 4, 16, 40, 300])
        counts = [draw.randint(1, most) for _ in range(draw.choice([1, 1, 2, 3, 5, 20, 80]))]
        past = draw.choice([0, 40, 500, 3000])
        spans, begin = [], 0
        for count in counts:
            spans.append(Span(begin, count, range(64), draw.randint(0, past) + count + draw.choice([0, 9]), False))
            begin += count
        positions = mx.zeros(begin, mx.int32)
        packing = Packing.of(spans, positions, limits=draw.choice([None, positions]))
        queries = mx.zeros((begin, shape.heads, shape.dim), HALF)
        operations.attention(queries, pool, packing, Manner(1.0, draw.choice([None, 8, 600]), sinks, shape.cap))
    assert {kernel.name for kernel, _, _ in serving.variants} == {"attend", "combine"}
    assert serving.variants <= known(shape).variants


@pytest.mark.parametrize("heads", RECURRENT, ids=str)
def test_no_round_recurs_in_a_variant_that_was_not_compiled(heads: Heads) -> None:
    shape = RecurrentShape(heads, 4, mx.float32)
    serving, draw = Recorder(), random.Random(heads.values)
    operations = chosen(shape, serving)
    weight = mx.zeros((heads.channels, 4))
    for _ in range(60):
        places: dict[int, Place] = {}
        state = mx.zeros((0, heads.values, heads.value_dim, heads.key_dim))
        tape = Tape(*(mx.zeros((0, *sizes)) for sizes in (heads[::2], heads[1::2], heads[1:2])))
        inputs = mx.zeros((0, heads.channels))
        for _ in range(5):
            rows = draw.sample(range(9), draw.choice([1, 2, 3, 9]))
            counts = {row: draw.randint(1, draw.choice([1, 2, 3, 9, 40])) for row in rows}
            spans, begin = [], 0
            for row, count in counts.items():
                final = count == 1 or draw.random() < 0.5
                spans.append(Span(begin, count, (), 0, row=row, fresh=row not in places, final=final))
                begin += count
            steps = Steps.of(spans, places, None, 3)
            x = mx.zeros((begin, heads.width))
            q, k, v, inputs = operations.convolved_heads(x, weight, inputs, steps, heads)
            numbers = mx.zeros((begin, heads.values))
            _, state, tape = operations.gated_delta(q, k, v, numbers, numbers, state, tape, steps)
            places = dict(steps.places)
    assert {kernel.name for kernel, _, _ in serving.variants} == {"convolve", "gated_delta"}
    assert serving.variants <= known(shape).variants


@pytest.mark.parametrize(("channels", "looks"), [(2048, 3), (4, 2)])
def test_no_round_convolves_in_a_variant_that_was_not_compiled(channels: int, looks: int) -> None:
    shape = ConvolutionShape(channels, looks, HALF)
    serving, draw = Recorder(), random.Random(channels)
    operations = chosen(shape, serving)
    for _ in range(60):
        places: dict[int, Place] = {}
        inputs = mx.zeros((0, channels), HALF)
        for _ in range(4):
            rows = draw.sample(range(9), draw.choice([1, 2, 9]))
            counts = [draw.randint(1, draw.choice([1, 3, 40])) for _ in rows]
            spans = [
                Span(sum(counts[:i]), count, (), 0, row=row, fresh=row not in places, final=draw.random() < 0.5)
                for i, (row, count) in enumerate(zip(rows, counts, strict=True))
            ]
            steps = Steps.of(spans, places, None, looks - 1)
            x = mx.zeros((sum(counts), 3 * channels), HALF)
            _, inputs = operations.gated_convolution(x, mx.zeros((channels, looks), HALF), None, inputs, steps)
            places = dict(steps.places)
    assert {kernel.name for kernel, _, _ in serving.variants} == {"convolve"}
    assert serving.variants <= known(shape).variants


@pytest.mark.parametrize("form", TILINGS)
@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
def test_no_product_runs_in_a_variant_that_was_not_compiled(shape: ProductShape, form: str) -> None:
    serving = Recorder()
    operations = chosen(shape, serving, form)
    weight = ZEROS.weight(shape.lines, shape.length, shape.quantisation, shape.dtype)
    for count in (*range(1, 130), 512, 2048):
        operations.quantized_matmul(mx.zeros((count, shape.length), shape.dtype), weight)
    assert serving.variants == known(shape, form).variants


def test_products_of_all_sizes_share_their_variants() -> None:
    """A new shape needs no compiler, but where fewer lines are shared by more simdgroups."""
    quantisation = Quantisation(64, 4)
    of_each = [known(ProductShape(*sizes, quantisation, HALF), "matrices") for sizes in [(2560, 512), (4096, 1024)]]
    assert of_each[0].variants == of_each[1].variants


@pytest.mark.parametrize("form", ["kernel", "matrices"])
def test_no_expert_runs_in_a_variant_that_was_not_compiled(form: str) -> None:
    serving, kind = Recorder(), EXPERTS.kind
    operations = chosen(EXPERTS, serving, form)
    up, down = (
        Layer(ZEROS.weight(kind.experts * lines, length, kind.quantisation, HALF).of_experts(kind.experts))
        for lines, length in ((kind.inside, kind.length), (kind.length, kind.inside))
    )

    def through(x: mx.array, product: Product) -> mx.array:
        return product(product(x, up), down)

    for count in (*range(1, 130), 512):
        x, experts = mx.zeros((count, kind.length), HALF), mx.zeros((count, EXPERTS.chosen), mx.uint32)
        operations.experts(x, experts, through, kind)
    assert {kernel.name for kernel, _, _ in serving.variants} == {"route", TILINGS[form].kernel}
    assert serving.variants == known(EXPERTS, form).variants


def test_no_adapters_run_in_a_variant_that_was_not_compiled() -> None:
    serving = Recorder()
    operations = chosen(ADAPTERS, serving)
    layer = LowRank(mx.zeros((5, 64), HALF), mx.zeros((5, 32), HALF), ADAPTERS.owners)
    for count in (*range(1, 130), 512):
        y, x = mx.zeros((count, 32), HALF), mx.zeros((count, 64), HALF)
        operations.add_low_rank(y, x, layer, Chosen(mx.zeros(count, mx.int32)))
    assert {kernel.name for kernel, _, _ in serving.variants} == {"add_low_rank"}
    assert serving.variants == known(ADAPTERS).variants


def test_adapters_that_have_no_room_are_stock() -> None:
    """Though others of as many ranks in all won with the kernel."""
    shape, serving = LowRankShape(8, 8, (0,) * ROOM + (1,) * ROOM, mx.float32), Recorder()
    operations = chosen(shape, serving)
    for owners, launches in ((shape.owners, 1), ((0,) * (2 * ROOM), 0)):
        layer = LowRank(mx.ones((2 * ROOM, 8)), mx.ones((2 * ROOM, 8)), owners)
        serving.variants.clear()
        given = operations.add_low_rank(mx.zeros((2, 8)), mx.ones((2, 8)), layer, Chosen(mx.array([0, -1], mx.int32)))
        assert len(serving.variants) == launches
    assert given.tolist() == [[8.0 * 2 * ROOM] * 8, [0.0] * 8]


def test_each_variant_runs_once() -> None:
    runs: list[Any] = []

    class Counting(Recorder):
        def __call__(self, kernel: Kernel, *given: Any) -> list[mx.array]:
            runs.append(kernel.name)
            return super().__call__(kernel, *given)

    layout = Layout(4, 2, 64, 64, 1e-6)
    every = [RotaryShape(layout, HALF), NormShape(64, HALF), *PRODUCTS, AttentionShape(8, 1, 128, HALF)]
    winners = {contest.key: KERNEL for contest in contests(every)}
    counting = Counting()
    compiled(Operations(winners, counting, in_place=True), [*every, *every])
    names = [kernel.name for kernel, _, _ in counting.variants]
    for name in ("rotate", "add_norm", "quantized_matmul", "attend", "store", "gather"):
        assert runs.count(name) == names.count(name)
    assert min(runs.count(name) for name in ("combine", "attend", "store", "gather")) > 0


def test_what_lost_its_races_is_not_compiled() -> None:
    """But for what keeps keys and values in place, and finds them there, whatever attends to them."""
    shape, recorder = AttentionShape(8, 2, 128, HALF), Recorder()
    compiled(Operations({}, recorder, in_place=False), [shape])
    assert not recorder.variants
    compiled(Operations({}, recorder, in_place=True), [shape])
    assert {kernel.name for kernel, _, _ in recorder.variants} == {"store", "gather"}


def test_an_operation_that_does_not_compile_is_stock(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Recorder):
        def __call__(self, kernel: Kernel, *given: Any) -> list[mx.array]:
            if kernel.name == "attend":
                raise RuntimeError("no such type\nand more")
            return super().__call__(kernel, *given)

    every = [AttentionShape(8, 2, 128, HALF), NormShape(64, HALF)]
    winners = {contest.key: KERNEL for contest in contests(every)}
    with caplog.at_level(logging.WARNING):
        left = compiled(Operations(winners, Refusing(), in_place=True), every)
    assert {key[0] for key in left.winners} == {"add norm"}
    assert [record.getMessage() for record in caplog.records] == [
        "attention: a kernel cannot be compiled, so stock MLX runs: no such type"
    ]
