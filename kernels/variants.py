"""Compiles, as a pair is loaded, whatever kernels serving can come to need: a row would wait for a compiler later.

What a kernel is compiled for depends on a round: how many queries its rows have, whether keys are split, even whether
an array has fewer than eight elements. So calls as different as those of rounds go through the operations without
running anything, and the first of each variant runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Protocol

import mlx.core as mx

from .attention.manner import Manner
from .choose.choose import Setting
from .gpu.launch import Variant, variant
from .gpu.source import Input, Kernel
from .operations import Operations
from .packing import FEW, Packing, Span
from .pages.pool import LayerPool
from .pages.sizes import pages_for
from .products.experts import Layer, Product
from .products.low_rank import Chosen, LowRank
from .products.quantisation import AFFINE, Quantisation, Weight
from .race.contestants import (
    AttentionShape,
    ChoiceShape,
    ConvolutionShape,
    NormShape,
    OperationShape,
    ProductShape,
    RecurrentShape,
    RotaryShape,
)
from .race.experts import ExpertsShape
from .race.keys import MOST_TOKENS
from .race.low_rank import LowRankShape
from .recurrent.gated_delta import Tape
from .recurrent.plan import Steps

COUNTS = (*range(1, 18), FEW, FEW + 1)
"""Queries of a span, or steps: all numbers in which tiles may differ, and the first of a prompt's chunks."""

TOKENS = (*range(1, 34), 49, 64, 65, MOST_TOKENS)
"""Tokens of a product: all numbers up to where its tiles are as large as they become, and more of such tiles."""

PASTS = (0, 300, 2048)
"""Keys before a round: none, enough to be split, enough for another winner."""

log = logging.getLogger(__name__)

Call = Callable[[Operations], Sequence[mx.array]]
"""One call of an operation; its outputs."""


class Inputs(Protocol):
    """What calls read."""

    def array(self, shape: Sequence[int], dtype: mx.Dtype = mx.float32) -> mx.array:
        """An array [shape]."""
        ...

    def weight(self, lines: int, length: int, quantisation: Quantisation, dtype: mx.Dtype) -> Weight:
        """A quantised weight [lines, length]."""
        ...

    def pool(self, operations: Operations, pages: int, heads: int, dim: int, dtype: mx.Dtype) -> LayerPool:
        """A pool with the keys and values that attention reads."""
        ...


class Zeros:
    """The inputs of calls that only have to be compiled."""

    def array(self, shape: Sequence[int], dtype: mx.Dtype = mx.float32) -> mx.array:
        return mx.zeros(shape, dtype)

    def weight(self, lines: int, length: int, quantisation: Quantisation, dtype: mx.Dtype) -> Weight:
        group_size, bits, mode = quantisation
        scales = mx.zeros((lines, length // group_size), dtype if mode == AFFINE else mx.uint8)
        biases = scales if mode == AFFINE else None
        return Weight(mx.zeros((lines, length * bits // 32), mx.uint32), scales, biases, quantisation)

    def pool(self, operations: Operations, pages: int, heads: int, dim: int, dtype: mx.Dtype) -> LayerPool:
        return operations.pool(pages, heads, dim, dtype)


ZEROS = Zeros()


class Recorder:
    """A launch that runs nothing and keeps which `variants` would have run. What it gives out is zeros."""

    def __init__(self) -> None:
        self.variants: set[Variant] = set()

    def __call__(
        self,
        kernel: Kernel,
        inputs: Sequence[Input],
        constants: Mapping[str, int | bool | mx.Dtype],
        groups: tuple[int, int, int],
        threads: int,
        outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
    ) -> list[mx.array]:
        self.variants.add(variant(kernel, inputs, constants, outputs))
        return [mx.zeros(shape, dtype) for shape, dtype in outputs]


def compiled(operations: Operations, shapes: Iterable[OperationShape]) -> Operations:
    """The operations, all of whose kernels' variants that these shapes can need have run.

    An operation of which one cannot be compiled is stock from then on.
    """
    known: set[Variant] = set()
    failed: set[str] = set()
    for name, call in (pair for shape in shapes for pair in calls(shape)):
        recorder = Recorder()
        call(replace(operations, launch=recorder))
        if name in failed or recorder.variants <= known:
            continue
        try:
            mx.eval(call(operations))
        except Exception as error:  # whatever a compiler or driver objects to
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            log.warning("%s: a kernel cannot be compiled, so stock MLX runs: %s", name, reason)
            failed.add(name)
        known |= recorder.variants
    mx.clear_cache()
    return operations.without(failed) if failed else operations


def calls(shape: OperationShape, inputs: Inputs = ZEROS) -> Iterator[tuple[str, Call]]:
    """Calls of a shape's operations as different as rounds can make them, each with its operation's name."""
    match shape:
        case AttentionShape():
            yield "pages", partial(_store_and_gather, shape, inputs)
            yield from (("attention", call) for call in _attention(shape, inputs))
        case RotaryShape():
            yield "rotary", partial(_rotate, shape, inputs)
        case NormShape():
            yield "add norm", partial(_add_norm, shape, inputs)
        case RecurrentShape():
            yield from _recurrent(shape, inputs)
        case ConvolutionShape(looks=looks):
            for steps, left in _steps(looks):
                yield "gated convolution", partial(_gated_convolution, shape, inputs, steps, left)
        case ChoiceShape():
            yield "choose", partial(_choose, shape, inputs)
        case ProductShape():
            yield from (("quantised product", call) for call in _products(shape, inputs))
        case LowRankShape():
            yield from (("adapters", call) for call in _low_rank(shape, inputs))
        case ExpertsShape():
            yield from (("experts", call) for call in _experts(shape, inputs))


def _store_and_gather(shape: AttentionShape, inputs: Inputs, operations: Operations) -> Sequence[mx.array]:
    """A draft's context is stored whichever form rotates, and keys are gathered where attention became stock."""
    pool = operations.pool(1, shape.kv_heads, shape.dim, shape.dtype)
    packing = _packing((1,), 0)
    one = (1, shape.kv_heads, shape.dim)
    pool.write(packing.places, inputs.array(one, shape.dtype), inputs.array(one, shape.dtype))
    return pool.gather(packing.rows, 1, packing.kept)


def _attention(shape: AttentionShape, inputs: Inputs) -> Iterator[Call]:
    pools: dict[bool, LayerPool] = {}  # rows may share one here
    for count, others, past, window in product(COUNTS, ((), (1,), (1,) * 16), PASTS, (None, 1)):
        counts = (count, *others) if count <= FEW else (count,) * min(1 + len(others), 2)
        packing = _packing(counts, past)
        queries = inputs.array((sum(counts), shape.heads, shape.dim), shape.dtype)
        yield partial(_attend, shape, inputs, pools, queries, packing, window)


def _attend(
    shape: AttentionShape,
    inputs: Inputs,
    pools: dict[bool, LayerPool],
    queries: mx.array,
    packing: Packing,
    window: int | None,
    operations: Operations,
) -> Sequence[mx.array]:
    sinks = inputs.array((shape.heads,), shape.dtype) if shape.sinks else None
    if operations.in_place not in pools:
        pages = pages_for(PASTS[-1] + COUNTS[-1])
        pools[operations.in_place] = inputs.pool(operations, pages, shape.kv_heads, shape.dim, shape.dtype)
    pool = pools[operations.in_place]
    pool.launch = operations.launch if operations.in_place else None
    return [operations.attention(queries, pool, packing, Manner(shape.dim**-0.5, window, sinks, shape.cap))]


def _packing(counts: Sequence[int], past: int) -> Packing:
    begins = [sum(counts[:row]) for row in range(len(counts))]
    pages = range(pages_for(past + max(counts)))
    spans = [Span(begin, count, pages, past + count) for begin, count in zip(begins, counts, strict=True)]
    positions = mx.array([past + i for count in counts for i in range(count)], mx.int32)
    return Packing.of(spans, positions)


def _rotate(shape: RotaryShape, inputs: Inputs, operations: Operations) -> Sequence[mx.array]:
    layout = shape.layout
    weight = inputs.array((layout.dim,), shape.dtype)
    norms = None if layout.epsilon is None else (weight, weight)
    turns = inputs.array((1, 2, layout.rotated // 2))
    pool = operations.pool(1, layout.kv_heads or 1, layout.dim, shape.dtype)
    packing, projected = _packing((1,), 0), inputs.array((1, layout.width), shape.dtype)
    queries = operations.rotate(projected, turns, norms, layout, pool, packing.places)
    return [queries, *pool.gather(packing.rows, 1, packing.kept)]


def _add_norm(shape: NormShape, inputs: Inputs, operations: Operations) -> Sequence[mx.array]:
    x, y = (inputs.array((1, shape.size), shape.dtype) for _ in range(2))
    return operations.add_norm(x, y, inputs.array((shape.size,), shape.dtype), 1e-6)


def _recurrent(shape: RecurrentShape, inputs: Inputs) -> Iterator[tuple[str, Call]]:
    for steps, left in _steps(shape.looks):
        yield "gated delta", partial(_gated_delta, shape, inputs, steps, left)
        yield "convolution", partial(_convolved_heads, shape, inputs, steps, left)


Left = tuple[int, int, int]
"""How many states, inputs and taped steps the last round left."""


def _steps(looks: int) -> Iterator[tuple[Steps, Left]]:
    """Rounds after none, after one that left no tape, and after some that left one: of steps, in two rows at most."""
    window = looks - 1
    for taped, count, rows, final in product((None, 0, *COUNTS[1:8]), COUNTS, (1, 2), (False, True)):
        spans = [
            Span(row * count, count, (), 0, row=row, fresh=taped is None, final=final or count == 1)
            for row in range(rows)
        ]
        last = [Span(row, taped or 1, (), 0, row=row, fresh=True, final=not taped) for row in range(rows)]
        places = {} if taped is None else Steps.of(last, {}, None, window).places
        steps = Steps.of(spans, places, None, window)
        yield steps, (0, 0, 0) if taped is None else (rows, rows * (window + taped), rows * taped)


def _choose(shape: ChoiceShape, inputs: Inputs, operations: Operations) -> Sequence[mx.array]:
    logits = inputs.array((1, shape.vocabulary), shape.dtype)
    return [operations.choose(logits, [Setting(1.0)], mx.zeros(1, mx.int32))]


def _gated_delta(
    shape: RecurrentShape, inputs: Inputs, steps: Steps, left: Left, operations: Operations
) -> Sequence[mx.array]:
    heads, count = shape.heads, sum(span.count for span in steps.seats)
    states, _, taped = left

    def keys(tokens: int) -> mx.array:
        """Of length 1 or nearly so, as the recurrence needs them."""
        return inputs.array((tokens, heads.keys, heads.key_dim), shape.dtype) * heads.key_dim**-0.5

    def values(tokens: int, dtype: mx.Dtype) -> mx.array:
        return inputs.array((tokens, heads.values, heads.value_dim), dtype)

    def shares(tokens: int) -> mx.array:
        """From 0 to 1."""
        return mx.sigmoid(inputs.array((tokens, heads.values)))

    q, k, v = keys(count), keys(count), values(count, shape.dtype)
    state = inputs.array((states, heads.values, heads.value_dim, heads.key_dim))
    tape = Tape(keys(taped), values(taped, mx.float32), shares(taped))
    decay, beta = shares(count), shares(count).astype(shape.dtype)
    output, state, tape = operations.gated_delta(q, k, v, decay, beta, state, tape, steps)
    return [output, state, tape.k, tape.delta, tape.decay]


def _convolved_heads(
    shape: RecurrentShape, inputs: Inputs, steps: Steps, left: Left, operations: Operations
) -> Sequence[mx.array]:
    heads, count = shape.heads, sum(span.count for span in steps.seats)
    x = inputs.array((count, heads.width), shape.dtype)
    weight = inputs.array((heads.channels, shape.looks), shape.dtype)
    before = inputs.array((left[1], heads.channels), shape.dtype)
    return operations.convolved_heads(x, weight, before, steps, heads)


def _gated_convolution(
    shape: ConvolutionShape, inputs: Inputs, steps: Steps, left: Left, operations: Operations
) -> Sequence[mx.array]:
    x = inputs.array((sum(span.count for span in steps.seats), 3 * shape.channels), shape.dtype)
    weight = inputs.array((shape.channels, shape.looks), shape.dtype)
    before = inputs.array((left[1], shape.channels), shape.dtype)
    return operations.gated_convolution(x, weight, None, before, steps)


def _products(shape: ProductShape, inputs: Inputs) -> Iterator[Call]:
    weight = inputs.weight(shape.lines, shape.length, shape.quantisation, shape.dtype)
    for count in TOKENS:
        x = inputs.array((count, shape.length), shape.dtype)
        yield lambda operations, x=x: [operations.quantized_matmul(x, weight)]


def _low_rank(shape: LowRankShape, inputs: Inputs) -> Iterator[Call]:
    ranks = len(shape.owners)
    down, up = (inputs.array((ranks, size), shape.dtype) for size in (shape.length, shape.lines))
    layer = LowRank(down / shape.length**0.5, up, shape.owners)
    for count in (1, 8, 32, MOST_TOKENS):
        y, x = (inputs.array((count, size), shape.dtype) for size in (shape.lines, shape.length))
        chosen = Chosen((mx.arange(count) % (shape.owners[-1] + 2) - 1).astype(mx.int32))
        yield lambda operations, y=y, x=x, chosen=chosen: [operations.add_low_rank(y, x, layer, chosen)]


def _experts(shape: ExpertsShape, inputs: Inputs) -> Iterator[Call]:
    kind = shape.kind
    up, down = (
        Layer(inputs.weight(kind.experts * lines, length, kind.quantisation, shape.dtype).of_experts(kind.experts))
        for lines, length in ((kind.inside, kind.length), (kind.length, kind.inside))
    )

    def through(x: mx.array, product: Product) -> mx.array:
        return product(product(x, up), down)

    for count in range(1, MOST_TOKENS + 1):
        x = inputs.array((count, kind.length), shape.dtype)
        chosen = mx.broadcast_to(mx.arange(shape.chosen, dtype=mx.uint32), (count, shape.chosen))
        yield lambda operations, x=x, chosen=chosen: [operations.experts(x, chosen, through, kind)]
