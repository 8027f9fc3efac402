"""What the kernels take on this machine's GPU, beside stock MLX: `python -m tests.benchmarks.kernels` in the root.

Prints Markdown tables of medians in milliseconds. A measurement is a round: calls that share one packing, as the layers
of a model do, launched together and waited for together. With new lengths, each round's keys are as many as never
before; with seen ones always as many. GB/s counts what must be read once, TFLOP/s what must be multiplied.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import click
import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.gated_delta import gated_delta_kernel, gated_delta_ops

from draftmill.engine.bench.shapes import SHAPES
from draftmill.engine.models.targets import adapt
from draftmill.engine.models.targets.transformer import Transformer
from draftmill.kernels.attention.manner import Manner
from draftmill.kernels.attention.ragged_attention import ragged_attention
from draftmill.kernels.attention.stock_attention import attention_by_row, attention_together
from draftmill.kernels.gpu.launch import on_gpu
from draftmill.kernels.operations import Operations
from draftmill.kernels.packing import Packing, Span
from draftmill.kernels.pages.pool import LayerPool
from draftmill.kernels.pages.sizes import pages_for
from draftmill.kernels.products.quantisation import Quantisation, Weight
from draftmill.kernels.products.quantized_matmul import quantized_matmul, quantized_matmul_by_kernel
from draftmill.kernels.products.tiling import TILINGS, raced
from draftmill.kernels.race.contestants import contests, filled
from draftmill.kernels.race.keys import KERNEL
from draftmill.kernels.recurrent.convolution import Heads, convolved_heads
from draftmill.kernels.recurrent.gated_delta import Tape, gated_delta
from draftmill.kernels.recurrent.plan import Steps
from draftmill.kernels.recurrent.recurrence import convolved_heads_by_kernel, gated_delta_by_kernel

MLX_LM = gated_delta_kernel if mx.metal.is_available() else gated_delta_ops
MOST_CALLS, REPEATS, SECONDS = 24, 5, 0.1
DTYPE = mx.bfloat16

Call = Callable[[], Sequence[mx.array]]
Round = Callable[[], Call]
"""Prepares a round, and returns what makes one call of it."""


def milliseconds(prepare: Round) -> float:
    """The median of a call's milliseconds, of rounds that are as long as fits a short time."""

    def seconds(calls: int) -> float:
        call = prepare()
        mx.synchronize()
        start = time.perf_counter()
        mx.eval([call() for _ in range(calls)])
        return (time.perf_counter() - start) / calls

    seconds(1)
    calls = max(2, min(MOST_CALLS, int(SECONDS / seconds(2))))
    seconds(calls)
    return statistics.median(seconds(calls) for _ in range(REPEATS)) * 1000


def row(*cells: object) -> None:
    click.echo(f"| {' | '.join(f'{cell:.3f}' if isinstance(cell, float) else str(cell) for cell in cells)} |")


def head(title: str, *cells: str) -> None:
    click.echo(f"\n{title}\n")
    row(*cells)
    row(*["---"] * len(cells))


def bench_attention(heads: int, kv_heads: int, dim: int) -> None:
    head(
        f"Attention, {heads} heads, {kv_heads} of keys and values, of {dim}, bfloat16",
        *("keys", "rows", "queries", "kernel, new", "kernel, seen", "GB/s", "TFLOP/s", "stock, new", "stock, seen"),
    )
    for keys in (512, 4096, 32768):
        for rows in (1, 8, 32):
            pool = filled(rows * pages_for(keys + 1024), kv_heads, dim, DTYPE, on_gpu)
            for queries in (1, 4, 16):
                q = mx.random.normal((rows * queries, heads, dim)).astype(DTYPE)
                mx.eval(q)
                new, seen = (attention_times(ragged_attention, q, pool, rows, keys, kind) for kind in (3, 0))
                forms = [attention_by_row] if rows == 1 else [attention_by_row, attention_together]
                stock = [min(attention_times(form, q, pool, rows, keys, kind) for form in forms) for kind in (3, 0)]
                read = 2 * rows * keys * kv_heads * dim * DTYPE.size
                work = 4 * rows * queries * keys * heads * dim
                row(keys, rows, queries, new, seen, round(read / new / 1e6), round(work / new / 1e9, 1), *stock)


def attention_times(
    form: Callable[..., mx.array], q: mx.array, pool: LayerPool, rows: int, keys: int, growth: int
) -> float:
    """Milliseconds of a form of attention, whose rows grow by so many keys from round to round."""
    queries, room, lengths = q.shape[0] // rows, pool.pages // rows, count(keys, growth)

    def prepare() -> Call:
        length = next(lengths)
        spans = [Span(r * queries, queries, range(r * room, (r + 1) * room), length) for r in range(rows)]
        at = mx.array([length - queries + i for _ in range(rows) for i in range(queries)], mx.int32)
        packing = Packing.of(spans, at)
        return lambda: [form(q, pool, packing, Manner(q.shape[2] ** -0.5))]

    return milliseconds(prepare)


def bench_gated_delta(hk: int, hv: int, dk: int, dv: int, taps: int) -> None:
    head(
        f"Gated delta rule and its convolution, {hk} heads of keys of {dk}, {hv} of values of {dv}, bfloat16",
        *("rows", "steps", "kernel", "GB/s", "mlx-lm", "plain MLX", "convolution: kernel", "plain MLX"),
    )

    def timed(form: Callable[..., Sequence], *given) -> float:
        return milliseconds(lambda: lambda: list(form(*given)[:2]))  # not the tape

    for rows in (1, 8, 32):
        for tokens in (1, 4, 16, 512):
            spans = [Span(r * tokens, tokens, (), 0, row=r, final=tokens > 16) for r in range(rows)]
            total, channels = rows * tokens, 2 * hk * dk + hv * dv
            before = Steps.of([Span(i, 1, (), 0, row=i, fresh=True) for i in range(rows)], {}, None, taps - 1)
            steps = Steps.of(spans, before.places, None, taps - 1)
            q, k = (mx.random.normal((total, hk, dk)).astype(DTYPE) for _ in range(2))
            v, beta = (mx.random.normal(shape).astype(DTYPE) for shape in ((total, hv, dv), (total, hv)))
            decay, state = mx.random.uniform(0.5, 1, (total, hv)), mx.random.normal((rows, hv, dv, dk))
            tape = Tape(mx.zeros((0, hk, dk), DTYPE), mx.zeros((0, hv, dv)), mx.zeros((0, hv)))
            x, weight = (mx.random.normal(shape).astype(DTYPE) for shape in ((total, channels), (channels, taps)))
            inputs = mx.random.normal((rows * (taps - 1), channels)).astype(DTYPE)
            mx.eval(q, k, v, decay, beta, state, x, weight, inputs)
            given = (q, k, v, decay, beta, state, tape, steps)
            batch = [array.reshape(rows, tokens, *array.shape[1:]) for array in given[:5]]

            ours = timed(gated_delta_by_kernel, *given)
            small = total <= 1024
            others = [timed(form, *args) for form, args in ((MLX_LM, (*batch, state)), (gated_delta, given)) if small]
            convolutions = [
                timed(form, x, weight, inputs, steps, Heads(hk, hv, dk, dv))
                for form in (convolved_heads_by_kernel, convolved_heads)
            ]
            read = 2 * state.nbytes + 2 * (q.nbytes + k.nbytes + v.nbytes)
            row(rows, tokens, ours, round(read / ours / 1e6), *(others or ("", "")), *convolutions)


def bench_quantized(length: int, lines: int, group: int, bits: int) -> None:
    quantisation = Quantisation(group, bits)
    forms: dict[str, Callable[[mx.array, Weight], mx.array]] = {"stock": quantized_matmul}
    for name, tiling in raced(tuple(TILINGS), length, quantisation).items():
        forms[name] = partial(quantized_matmul_by_kernel, tiling=tiling)
    head(f"Quantised product, {length} x {lines}, {bits} bits, groups of {group}", "rows", *forms, "best, GB/s")
    dense = [mx.random.normal((lines, length)).astype(DTYPE) for _ in range(8)]
    weights = [Weight(*mx.quantize(each, group, bits), quantisation) for each in dense]
    mx.eval([weight[:3] for weight in weights])

    def timed(form: Callable[[mx.array, Weight], mx.array], x: mx.array) -> float:
        turn = count()  # through several weights, which together do not fit a cache
        return milliseconds(lambda: lambda: [form(x, weights[next(turn) % 8])])

    read = sum(array.nbytes for array in weights[0][:3] if array is not None)
    for rows in (1, 2, 4, 8, 16, 32, 64):
        x = mx.random.normal((rows, length)).astype(DTYPE)
        mx.eval(x)
        times = [timed(form, x) for form in forms.values()]
        row(rows, *times, round(read / min(times) / 1e6))


def bench_rounds(name: str, bits: int) -> None:
    """A round of a whole target, without a draft: rows that verify so many tokens each, over new lengths."""
    model = SHAPES[name].build(bits)
    head(
        f"{name}, {bits} bits: a round, {CONTEXT} keys, new lengths, milliseconds",
        *("rows", "tokens of each", "with kernels", "stock", "mlx-lm's plain step", "kernels / mlx-lm"),
    )
    plain: dict[int, float] = {}
    for rows in (1, 8, 32):
        plain[rows] = chained(plainly(model, rows))
    target = adapt(model)
    arms: dict[str, Operations] = {
        "stock": Operations(),
        "kernels": Operations({contest.key: KERNEL for contest in contests(target.shapes)}),
    }
    for rows in (1, 8, 32):
        for tokens in (1, 4, 16):
            times: dict[str, float] = {}
            for arm, operations in arms.items():
                target.operations = operations
                times[arm] = chained(verifying(target, rows, tokens))
            row(rows, tokens, times["kernels"], times["stock"], plain[rows], round(times["kernels"] / plain[rows], 2))


CONTEXT, ROUNDS = 512, 24


def plainly(model: Any, rows: int) -> Callable[[], mx.array]:
    """mlx-lm's steps of so many rows, a token each."""
    cache = make_prompt_cache(model)
    last = mx.zeros((rows, 1), mx.int32)
    mx.eval(model(mx.zeros((rows, CONTEXT), mx.int32), cache=cache))

    def step() -> mx.array:
        nonlocal last
        last = mx.argmax(model(last, cache=cache)[:, -1:], axis=-1)
        return last

    return step


def verifying(target: Transformer, rows: int, tokens: int) -> Callable[[], mx.array]:
    """Rounds that verify so many tokens of each row and accept all but one, each from what the last one left."""
    room = pages_for(CONTEXT + 8 * ROUNDS)
    state, lengths = target.make_state(rows * room), count(CONTEXT)
    last = mx.zeros((rows * tokens,), mx.int32)
    fresh = True

    def verify() -> mx.array:
        nonlocal last, fresh
        length = next(lengths)
        spans = [
            Span(
                r * tokens,
                tokens,
                range(r * room, (r + 1) * room),
                length + tokens,
                row=r,
                fresh=fresh,
                final=tokens == 1,
            )
            for r in range(rows)
        ]
        fresh = False
        at = mx.array([length + i for _ in range(rows) for i in range(tokens)], mx.int32)
        replay = mx.array([tokens - 1] * rows, mx.int32)
        hidden, _ = target.forward(last, Packing.of(spans, at, replay), state)
        last = mx.argmax(target.head(hidden), axis=-1).astype(mx.int32)
        return last

    return verify


def chained(step: Callable[[], mx.array]) -> float:
    """Milliseconds of steps that each follow from the last one, one launched ahead of the device."""
    times: list[float] = []
    for _ in range(3):
        waiting: list[mx.array] = []
        for _ in range(ROUNDS // 2):
            mx.eval(step())
        start = time.perf_counter()
        for _ in range(ROUNDS):
            waiting.append(step())
            mx.async_eval(waiting[-1])
            if len(waiting) > 1:
                mx.eval(waiting.pop(0))
        mx.synchronize()
        times.append((time.perf_counter() - start) / ROUNDS * 1000)
    return statistics.median(times)


@click.command()
@click.argument("what", type=click.Choice(["attention", "gated-delta", "quantized", "rounds"]), nargs=-1)
def main(what: tuple[str, ...]) -> None:
    """Measure kernels, or those named; shapes are those of Qwen3-4B and Qwen3.5-4B."""
    if not what or "rounds" in what:
        bench_rounds("qwen3-4b", 16)
        bench_rounds("qwen3.5-4b", 16)
    if not what or "attention" in what:
        bench_attention(32, 8, 128)
        bench_attention(16, 4, 256)
    if not what or "gated-delta" in what:
        bench_gated_delta(16, 32, 128, 128, 4)
    if not what or "quantized" in what:
        bench_quantized(2560, 9728, 64, 4)
        bench_quantized(2560, 9728, 64, 8)


if __name__ == "__main__":
    main()
