"""What is raced for a model: its operations at representative shapes, on random numbers, in every form that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import accumulate, product

import mlx.core as mx

from ..attention.manner import Manner
from ..attention.ragged_attention import fits as attention_fits
from ..attention.ragged_attention import ragged_attention
from ..attention.stock_attention import attention_by_row, attention_together
from ..choose.choose import Setting, choose, choose_by_kernel
from ..choose.choose import fits as choice_fits
from ..fused.add_norm import add_norm, add_norm_by_kernel
from ..fused.add_norm import fits as norm_fits
from ..fused.rotary import Layout, rotate, rotate_by_kernel
from ..fused.rotary import fits as rotary_fits
from ..gpu.launch import on_gpu
from ..gpu.source import Launch
from ..packing import FEW, Packing, Span
from ..pages.places import Places, tabled
from ..pages.pool import LayerPool
from ..pages.sizes import PAGE, pages_for
from ..products.quantisation import Quantisation, Weight
from ..products.quantized_matmul import quantized_matmul, quantized_matmul_by_kernel
from ..products.tiling import RACED, raced
from ..recurrent.convolution import Heads, convolved_heads, gated_convolution
from ..recurrent.gated_delta import Tape, gated_delta
from ..recurrent.plan import Steps
from ..recurrent.recurrence import (
    convolution_fits,
    convolved_heads_by_kernel,
    gated_convolution_by_kernel,
    gated_convolution_fits,
    gated_delta_by_kernel,
)
from ..recurrent.recurrence import fits as recurrence_fits
from .attention_checks import Check, checks
from .experts import ExpertsShape, expert_contests
from .keys import (
    KERNEL,
    STOCK,
    TOGETHER,
    attention_key,
    choice_key,
    norm_key,
    product_key,
    recurrence_key,
    rotary_key,
)
from .low_rank import LowRankShape, low_rank_contests
from .noise import noise, quantised_noise
from .race import CALLS, Call, Contest, Form, Outputs, after

NEW_LENGTHS = 128
"""Positions beyond a row's keys, so that every round of a race can have a length of its own."""


@dataclass(frozen=True)
class AttentionShape:
    """Attention layers: `heads` of `dim`, of which groups share one of `kv_heads`; whether each head has a sink, and
    how far scores reach if they are capped.
    """

    heads: int
    kv_heads: int
    dim: int
    dtype: mx.Dtype
    sinks: bool = False
    cap: float | None = None


@dataclass(frozen=True)
class RotaryShape:
    """Queries and keys as they leave a joint projection."""

    layout: Layout
    dtype: mx.Dtype


@dataclass(frozen=True)
class NormShape:
    """Tokens of so many elements."""

    size: int
    dtype: mx.Dtype


@dataclass(frozen=True)
class RecurrentShape:
    """Recurrent layers: their heads, and how many inputs the convolution looks at."""

    heads: Heads
    looks: int
    dtype: mx.Dtype


@dataclass(frozen=True)
class ConvolutionShape:
    """Layers that are a convolution between two gates: how many channels it has, and how many inputs it looks at."""

    channels: int
    looks: int
    dtype: mx.Dtype


@dataclass(frozen=True)
class ProductShape:
    """Products with a quantised weight of `lines` of `length`."""

    length: int
    lines: int
    quantisation: Quantisation
    dtype: mx.Dtype


@dataclass(frozen=True)
class ChoiceShape:
    """Logits of so many tokens, of which each slot chooses one; of so many slots at `most`."""

    vocabulary: int
    dtype: mx.Dtype
    most: int = 512


OperationShape = (
    AttentionShape
    | RotaryShape
    | NormShape
    | RecurrentShape
    | ConvolutionShape
    | ProductShape
    | ExpertsShape
    | LowRankShape
    | ChoiceShape
)


def contests(shapes: Sequence[OperationShape], launch: Launch = on_gpu) -> Iterator[Contest]:
    """The contests of a model's shapes, in which `launch` runs the kernels."""
    for shape in shapes:
        match shape:
            case AttentionShape():
                yield from _attention(shape, launch)
            case RotaryShape(layout, dtype):
                yield Contest(rotary_key(layout, dtype), dtype, partial(_rotary_forms, shape, launch))
            case NormShape(size, dtype):
                yield Contest(norm_key(size, dtype), dtype, partial(_norm_forms, shape, launch))
            case RecurrentShape():
                yield from _recurrent(shape, launch)
            case ConvolutionShape(channels, looks, dtype):
                for steps in _rounds(looks):
                    key = recurrence_key("gated convolution", (channels, looks), (), dtype, steps)
                    yield Contest(key, dtype, partial(_gated_convolution_forms, shape, launch, steps))
            case ProductShape():
                yield from _products(shape, launch)
            case ExpertsShape():
                yield from expert_contests(shape, launch)
            case LowRankShape():
                yield from low_rank_contests(shape, launch)
            case ChoiceShape(vocabulary, dtype, most):
                for slots, drawn in ((16, False), (512, False), (16, True)):
                    if slots <= most:
                        key = choice_key(slots, vocabulary, dtype, drawn)
                        yield Contest(key, mx.int32, partial(_choice_forms, shape, launch, slots, drawn))


def _attention(shape: AttentionShape, launch: Launch) -> Iterator[Contest]:
    sizes = [*product((1, 8, 32), (1, 16), (512, 4096)), *product((1, 2), (256,), (512, 4096))]
    pages = max(rows * pages_for(keys + NEW_LENGTHS) for rows, _, keys in sizes)
    # One pool, made when the first contest is: like those of an engine, it is larger than what a round reads of it.
    pool = cache(partial(filled, pages, shape.kv_heads, shape.dim, shape.dtype, launch))
    for rows, queries, keys in sizes:
        empty = mx.zeros((1, shape.heads, shape.dim), shape.dtype)
        packing = _packing(rows, queries, keys, 0)
        key = attention_key(empty, shape.kv_heads, packing, shape.sinks, shape.cap is not None)
        yield Contest(key, shape.dtype, partial(_attention_forms, shape, pool, rows, queries, keys))


def _attention_forms(
    shape: AttentionShape, shared: Callable[[], LayerPool], rows: int, queries: int, keys: int
) -> Mapping[str, Form]:
    q, pool = noise(rows * (queries + NEW_LENGTHS), shape.heads, shape.dim, dtype=shape.dtype), shared()
    sinks = noise(shape.heads, dtype=shape.dtype) if shape.sinks else None
    manner = Manner(shape.dim**-0.5, sinks=sinks, cap=shape.cap)
    mx.eval(q, sinks)

    def run(form: Callable[..., mx.array], round: int) -> Call:
        packing = _packing(rows, queries, keys, round)
        own = q[: packing.positions.size]
        return lambda layer, before: [form(after(own, before), pool, packing, manner)]

    def check(form: Callable[..., mx.array], check: Check) -> Outputs:
        own = q[: check.packing.positions.size]
        return [form(own, pool, check.packing, replace(manner, window=check.window))]

    forms = {STOCK: attention_by_row}
    if attention_fits(q, pool):
        forms[KERNEL] = ragged_attention
    elif rows > 1:  # copies the keys and values of all rows in every layer, so that rounds need gigabytes
        forms[TOGETHER] = attention_together
    ragged = checks(queries)
    return {
        name: Form(partial(run, form), tuple(partial(check, form, each) for each in ragged))
        for name, form in forms.items()
    }


def filled(pages: int, heads: int, dim: int, dtype: mx.Dtype, launch: Launch | None) -> LayerPool:
    """A pool of random numbers; kernels write it if there is a `launch`."""
    pool = LayerPool(pages, heads, dim, dtype, launch)
    for page in range(0, pages, 64):  # in parts: they are held twice until they are written
        count = min(64, pages - page) * PAGE
        table, _ = tabled([range(page, pages)])
        places = Places(table, mx.zeros(count, mx.int32), mx.arange(count, dtype=mx.int32))
        pool.write(places, *(noise(count, heads, dim, dtype=dtype) for _ in range(2)))
        mx.eval(pool.after)
    return pool


def _packing(rows: int, queries: int, keys: int, round: int) -> Packing:
    """Rows that each have so many keys, and one more in every round. Prompts end anywhere, so no two chunks of them, in
    whatever round, have as many queries.
    """
    room, length = pages_for(keys + NEW_LENGTHS), keys + round
    counts = [queries + (rows * round + row if queries > FEW else 0) for row in range(rows)]
    begins = accumulate(counts, initial=0)
    spans = [
        Span(begin, count, range(row * room, (row + 1) * room), length)
        for row, (begin, count) in enumerate(zip(begins, counts, strict=False))
    ]
    positions = [span.length - span.count + i for span in spans for i in range(span.count)]
    return Packing.of(spans, mx.array(positions, mx.int32))


TOKENS = 16
"""Tokens of a round in the contests of operations that know of no rows."""


def _rotary_forms(shape: RotaryShape, launch: Launch) -> Mapping[str, Form]:
    layout, dtype = shape.layout, shape.dtype
    projected = mx.random.normal((TOKENS, layout.width)).astype(dtype)
    turns = mx.random.uniform(-1, 1, (TOKENS, 2, layout.rotated // 2))
    weight = mx.random.uniform(0.5, 1.5, (layout.dim,)).astype(dtype)
    norms = None if layout.epsilon is None else (weight, weight)
    pool = LayerPool(1, layout.kv_heads or 1, layout.dim, dtype, launch)  # another layer's, if it has no keys
    packing = Packing.of([Span(0, TOKENS, (0,), TOKENS)], mx.arange(TOKENS, dtype=mx.int32))
    mx.eval(projected, turns, weight)
    forms: dict[str, Callable[..., mx.array]] = {STOCK: rotate}
    if rotary_fits(layout, dtype):
        forms[KERNEL] = rotate_by_kernel

    def run(form: Callable[..., mx.array], x: mx.array) -> Outputs:
        queries = form(x, turns, norms, layout, pool, packing.places)
        return [queries, *pool.gather(packing.rows, TOKENS, packing.kept)]

    return _always({name: partial(run, form) for name, form in forms.items()}, projected)


def _norm_forms(shape: NormShape, launch: Launch) -> Mapping[str, Form]:
    x, y = (mx.random.normal((TOKENS, shape.size)).astype(shape.dtype) for _ in range(2))
    weight = mx.random.uniform(0.5, 1.5, (shape.size,)).astype(shape.dtype)
    mx.eval(x, y, weight)
    forms = {STOCK: add_norm}
    if norm_fits(x):
        forms[KERNEL] = partial(add_norm_by_kernel, launch=launch)
    return _always({name: lambda x, form=form: form(x, y, weight, 1e-6) for name, form in forms.items()}, x)


def _always(forms: Mapping[str, Callable[[mx.array], Outputs]], x: mx.array) -> Mapping[str, Form]:
    """Operations on x that are the same in all rounds and layers."""
    return {
        name: Form(lambda round, form=form: lambda layer, before: form(after(x, before)))
        for name, form in forms.items()
    }


def _recurrent(shape: RecurrentShape, launch: Launch) -> Iterator[Contest]:
    heads = shape.heads
    keys, values = (heads.keys, heads.key_dim), (heads.values, heads.value_dim)
    for steps in _rounds(shape.looks):
        key = recurrence_key("gated delta", keys, values, shape.dtype, steps)
        yield Contest(key, shape.dtype, partial(_gated_delta_forms, shape, launch, steps))
        key = recurrence_key("convolution", (heads.channels, shape.looks), heads, shape.dtype, steps)
        yield Contest(key, shape.dtype, partial(_convolution_forms, shape, launch, steps))


def _rounds(looks: int) -> Iterator[Steps]:
    """Of some rows that decode with drafts, and of a chunk of a prompt."""
    yield from (_steps(rows, count, looks) for rows, count in ((8, 16), (1, 256)))


def _steps(rows: int, count: int, looks: int) -> Steps:
    """Rows that have a state each, and no tape."""
    before = Steps.of([Span(row, 1, (), 0, row=row, fresh=True) for row in range(rows)], {}, None, looks - 1)
    spans = [Span(row * count, count, (), 0, row=row, final=count > 16) for row in range(rows)]
    return Steps.of(spans, before.places, None, looks - 1)


def _gated_delta_forms(shape: RecurrentShape, launch: Launch, steps: Steps) -> Mapping[str, Form]:
    rows, count, heads = len(steps.seats), sum(span.count for span in steps.seats), shape.heads
    q, k = (mx.random.normal((count, heads.keys, heads.key_dim)) for _ in range(2))
    q, k = ((a / mx.linalg.norm(a, axis=-1, keepdims=True)).astype(shape.dtype) for a in (q, k))
    v = mx.random.normal((count, heads.values, heads.value_dim)).astype(shape.dtype)
    decay = mx.random.uniform(0.5, 1, (count, heads.values))
    beta = mx.random.uniform(0, 1, (count, heads.values)).astype(shape.dtype)
    state = mx.random.normal((rows, heads.values, heads.value_dim, heads.key_dim))
    none = (heads.keys, heads.key_dim), (heads.values, heads.value_dim), (heads.values,)
    dtypes = shape.dtype, mx.float32, mx.float32
    tape = Tape(*(mx.zeros((0, *sizes), dtype) for sizes, dtype in zip(none, dtypes, strict=True)))
    mx.eval(q, k, v, decay, beta, state)

    forms = {STOCK: gated_delta}
    if recurrence_fits(k):
        forms[KERNEL] = partial(gated_delta_by_kernel, launch=launch)
    return _always(
        {name: lambda k, form=form: form(q, k, v, decay, beta, state, tape, steps)[:2] for name, form in forms.items()},
        k,
    )


def _convolution_forms(shape: RecurrentShape, launch: Launch, steps: Steps) -> Mapping[str, Form]:
    rows, count = len(steps.seats), sum(span.count for span in steps.seats)
    channels = shape.heads.channels
    x = mx.random.normal((count, shape.heads.width)).astype(shape.dtype)
    weight = mx.random.normal((channels, shape.looks)).astype(shape.dtype)
    inputs = mx.random.normal((rows * (shape.looks - 1), channels)).astype(shape.dtype)
    mx.eval(x, weight, inputs)
    forms = {STOCK: convolved_heads}
    if convolution_fits(shape.heads, shape.dtype) and shape.heads.width % 4 == 0:
        forms[KERNEL] = partial(convolved_heads_by_kernel, launch=launch)
    return _always(
        {name: lambda x, form=form: form(x, weight, inputs, steps, shape.heads) for name, form in forms.items()}, x
    )


def _gated_convolution_forms(shape: ConvolutionShape, launch: Launch, steps: Steps) -> Mapping[str, Form]:
    rows, count = len(steps.seats), sum(span.count for span in steps.seats)
    x = mx.random.normal((count, 3 * shape.channels)).astype(shape.dtype)
    weight = mx.random.normal((shape.channels, shape.looks)).astype(shape.dtype)
    inputs = mx.random.normal((rows * (shape.looks - 1), shape.channels)).astype(shape.dtype)
    mx.eval(x, weight, inputs)
    forms: dict[str, Callable[[mx.array], Outputs]] = {
        STOCK: lambda x: gated_convolution(x, weight, None, inputs, steps)
    }
    if gated_convolution_fits(shape.channels, shape.dtype):
        forms[KERNEL] = lambda x: gated_convolution_by_kernel(x, weight, inputs, steps, launch)
    return _always(forms, x)


def _products(shape: ProductShape, launch: Launch) -> Iterator[Contest]:
    weights = cache(partial(_cold_weights, shape))  # made when the first contest is
    for rows in RACED:
        key = product_key(rows, shape.length, shape.lines, shape.quantisation, shape.dtype)
        yield Contest(key, shape.dtype, partial(_product_forms, shape, launch, weights, rows))


COLD = 1 << 27
"""Bytes that no cache holds. Each layer of a round reads a weight of its own, so products share out so many."""


def _cold_weights(shape: ProductShape) -> list[Weight]:
    each = shape.lines * shape.length * shape.quantisation.bits // 8
    fields = shape.lines, shape.length, shape.quantisation, shape.dtype
    weights = [quantised_noise(*fields) for _ in range(min(CALLS, -(-COLD // each)))]
    mx.eval([weight[:3] for weight in weights])
    return weights


def _product_forms(
    shape: ProductShape, launch: Launch, shared: Callable[[], list[Weight]], rows: int
) -> Mapping[str, Form]:
    x, weights = mx.random.normal((rows, shape.length)).astype(shape.dtype), shared()
    mx.eval(x)

    def run(form: Callable[[mx.array, Weight], mx.array], round: int) -> Call:
        return lambda layer, before: [form(after(x, before), weights[layer % len(weights)])]

    forms: dict[str, Callable[[mx.array, Weight], mx.array]] = {STOCK: quantized_matmul}
    for name, tiling in raced(RACED[rows], shape.length, shape.quantisation).items():
        forms[name] = partial(quantized_matmul_by_kernel, tiling=tiling, launch=launch)
    return {name: Form(partial(run, form)) for name, form in forms.items()}


def _choice_forms(shape: ChoiceShape, launch: Launch, slots: int, drawn: bool) -> Mapping[str, Form]:
    some = (3 * mx.random.normal((16, shape.vocabulary))).astype(shape.dtype)
    logits, positions = mx.tile(some, (slots // 16, 1)), mx.arange(slots, dtype=mx.int32)
    settings = [Setting(1 / 0.7, 0.8, 20, slot, 0.05 * (slot % 2)) if drawn else Setting() for slot in range(slots)]
    mx.eval(logits, positions)
    forms: dict[str, Callable[[mx.array], Outputs]] = {STOCK: lambda at: [choose(logits, settings, at)]}
    if choice_fits(shape.vocabulary, shape.dtype):
        forms[KERNEL] = lambda at: [choose_by_kernel(logits, settings, at, launch)]
    return _always(forms, positions)
