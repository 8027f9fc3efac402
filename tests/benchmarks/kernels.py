"""What the kernels take on this machine's GPU, beside stock MLX: `python -m tests.benchmarks.kernels` in the root.

Medians of milliseconds a call, and what the kernel reads a second. Calls are launched one after the other and waited
for together, as in a round of many layers. With new lengths, each call has keys of a length that came never before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import click
import mlx.core as mx
from mlx_lm.models.gated_delta import gated_delta_kernel, gated_delta_ops

from draftmill.kernels.attention import attention
from draftmill.kernels.gated_delta import Tape, gated_delta
from draftmill.kernels.packing import Packing, Span
from draftmill.kernels.quantized_matmul import quantized_matmul, quantized_matmul_by_kernel
from draftmill.kernels.ragged_attention import ragged_attention
from draftmill.kernels.recurrence import gated_delta_by_kernel
from draftmill.kernels.steps import Steps

MLX_LM = gated_delta_kernel if mx.metal.is_available() else gated_delta_ops
CALLS, REPEATS = 12, 5
DTYPE = mx.bfloat16

Run = Callable[[], Sequence[mx.array]]


def milliseconds(run: Run) -> float:
    """The median of a call's milliseconds."""
    mx.eval(run())
    times: list[float] = []
    for _ in range(REPEATS):
        mx.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            mx.async_eval(run())
        mx.synchronize()
        times.append((time.perf_counter() - start) / CALLS * 1000)
    return statistics.median(times)


def report(what: str, read: int, ours: Run, **others: Run) -> None:
    """Time the kernel and the `others`; `read` is how many bytes it must read."""
    taken = milliseconds(ours)
    beside = "  ".join(f"{name} {milliseconds(run):8.3f}" for name, run in others.items())
    click.echo(f"{what:44} kernel {taken:8.3f} ms {read / taken / 1e6:7.0f} GB/s  {beside}")


def attend(
    form: Callable[..., mx.array], arrays: tuple[mx.array, ...], rows: int, queries: int, lengths: Callable[[], int]
) -> list[mx.array]:
    """One call for rows of so many queries, over as many keys as `lengths` says next."""
    length, extent = lengths(), arrays[1].shape[0] // rows
    spans = tuple(Span(row * queries, queries, row * extent, length) for row in range(rows))
    positions = mx.array([length - queries + i for _ in range(rows) for i in range(queries)], mx.int32)
    return [form(*arrays, Packing(spans, positions, positions), arrays[0].shape[2] ** -0.5)]


def bench_attention(heads: int, kv_heads: int, dim: int) -> None:
    for keys in (512, 4096, 32768):
        for rows in (1, 8, 32):
            pool = [mx.random.normal((rows * (keys + 1024), kv_heads, dim)).astype(DTYPE) for _ in range(2)]
            mx.eval(pool)
            for queries in (1, 4, 16):
                q = mx.random.normal((rows * queries, heads, dim)).astype(DTYPE)
                for kind, lengths in (("seen", lambda keys=keys: keys), ("new", count(keys + 1, 3).__next__)):
                    forms = ragged_attention, attention
                    ours, stock = (partial(attend, f, (q, *pool), rows, queries, lengths) for f in forms)
                    read = 2 * rows * keys * kv_heads * dim * DTYPE.size
                    report(f"attention {dim}: {keys} keys, {rows} rows of {queries}, {kind}", read, ours, stock=stock)


def bench_gated_delta(hk: int, hv: int, dk: int, dv: int) -> None:
    for rows in (1, 8, 32):
        for tokens in (1, 4, 16, 512):
            spans = [Span(row * tokens, tokens, 0, 0, row=row, final=tokens > 16) for row in range(rows)]
            total = rows * tokens
            places = Steps.of([Span(i, 1, 0, 0, row=i, fresh=True) for i in range(rows)], {}, None, 3).places
            steps = Steps.of(spans, places, None, 3)
            q, k = (mx.random.normal((total, hk, dk)).astype(DTYPE) for _ in range(2))
            v, beta = (mx.random.normal(shape).astype(DTYPE) for shape in ((total, hv, dv), (total, hv)))
            decay, state = mx.random.uniform(0.5, 1, (total, hv)), mx.random.normal((rows, hv, dv, dk))
            tape = Tape(mx.zeros((0, hk, dk), DTYPE), mx.zeros((0, hv, dv)), mx.zeros((0, hv)))
            mx.eval(q, k, v, decay, beta, state)

            def flat(form: Callable[..., tuple[mx.array, mx.array, Tape]], *given) -> list[mx.array]:
                output, left, taped = form(*given)
                return [output, left, taped.k, taped.delta, taped.decay]

            given = (q, k, v, decay, beta, state, tape, steps)
            batch = [array.reshape(rows, tokens, *array.shape[1:]) for array in given[:5]]
            others: dict[str, Run] = {
                "mlx-lm": partial(MLX_LM, *batch, state),
                "plain": partial(flat, gated_delta, *given),
            }
            others = others if total <= 1024 else {}
            read = 2 * state.nbytes
            report(
                f"gated delta: {rows} rows of {tokens}", read, partial(flat, gated_delta_by_kernel, *given), **others
            )


def bench_quantized(length: int, lines: int, group: int, bits: int) -> None:
    w, scales, biases = mx.quantize(mx.random.normal((lines, length)).astype(DTYPE), group, bits)
    mx.eval(w, scales, biases)
    for rows in (1, 2, 4, 8, 16, 32, 64):
        x = mx.random.normal((rows, length)).astype(DTYPE)
        ours, stock = (
            lambda form=form, x=x: [form(x, w, scales, biases, group, bits)]
            for form in (quantized_matmul_by_kernel, quantized_matmul)
        )
        read = w.nbytes + scales.nbytes + biases.nbytes
        report(f"quantised {length} x {lines}, {bits} bits: {rows} rows", read, ours, stock=stock)


@click.command()
@click.argument("what", type=click.Choice(["attention", "gated-delta", "quantized"]), nargs=-1)
def main(what: tuple[str, ...]) -> None:
    """Measure kernels, or those named; shapes are those of Qwen3-4B and Qwen3.5-4B."""
    if not what or "attention" in what:
        bench_attention(32, 8, 128)
        bench_attention(16, 4, 256)
    if not what or "gated-delta" in what:
        bench_gated_delta(16, 32, 128, 128)
    if not what or "quantized" in what:
        bench_quantized(2560, 9728, 64, 4)
        bench_quantized(2560, 9728, 64, 8)


if __name__ == "__main__":
    main()
