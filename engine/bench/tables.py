"""The tables of a bench over synthetic shapes: rows and acceptances, a dataset, a shared template, idleness."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..models.targets.transformer import Transformer
from ..request import Request, Sampling
from .arms import Draftmill
from .idle import measure_idle
from .measure import Cell, attempt, ratios, steady, whole
from .replay import Accept, described
from .report import Line, Table
from .synthetic import Synthetic, longest


def rows_table(
    bench: Synthetic, rows: Sequence[int], accept: Accept, context: int, tokens: int, repeats: int, arms: Sequence[str]
) -> Table:
    """Steady decoding at so many rows. Beside it the seconds of the prefill, and the speed if they are counted."""
    table = Table(
        f"{describe(bench)}, decoding, {described(accept)}, context {context}, tokens/s",
        axis="rows",
    )
    for count in rows:
        requests = bench.rows(count, context, tokens, accept, repeats)
        continuation = bench.continuation(requests, accept)
        made = bench.arms(count, requests, continuation, arms)
        cells = steady(made, requests, tokens, repeats, bench.expected(continuation))
        table.lines.append(Line(str(count), cells, at=count))
        fact: dict[str, Any] = {"prefill s, tokens/s with it; rows": count}
        for arm, cell in cells.items():
            if cell.samples and cell.prefill:
                seconds = cell.prefill + count * tokens / cell.rate
                fact[arm] = f"{cell.prefill:.2f}, {count * tokens / seconds:,.0f}"
        others = [cell for arm, cell in cells.items() if arm != "adaptive" and cell.samples]
        if others and "adaptive" in cells and cells["adaptive"].samples:
            best = max(others, key=lambda cell: cell.rate)
            fact["adaptive to the best other"] = ratios(cells["adaptive"], best)[0]
        table.facts.append(fact)
    return table


def dataset_table(
    bench: Synthetic,
    count: int,
    rows: Sequence[int],
    accept: Accept,
    context: int,
    tokens: int,
    repeats: int,
    arms: Sequence[str],
) -> Table:
    """Whole runs of a dataset of mixed lengths, each arm at so many rows."""
    requests = bench.dataset(count, context, tokens)
    continuation = bench.continuation(requests, accept)
    lengths = f"prompts of {context // 8} to {2 * context} tokens, up to {tokens // 8} to {2 * tokens} new ones"
    table = Table(
        f"{describe(bench)}, whole run of {count} requests, {described(accept)}, {lengths}, tokens/s",
        axis="rows",
    )
    for number in rows:
        made = bench.arms(number, requests, continuation, [arm for arm in arms if arm not in ("mlx-stream", "dflash")])
        cells = whole(made, requests, repeats, bench.expected(continuation))
        table.lines.append(Line(str(number), cells, at=number))
    best = {
        arm: max(line.cells[arm].rate for line in table.lines if line.cells[arm].samples) for arm in finished(table)
    }
    table.facts += [
        {
            "arm": arm,
            "best tokens/s": rate,
            "to mlx-batch at its best": rate / best["mlx-batch"] if "mlx-batch" in best else "",
        }
        for arm, rate in best.items()
    ]
    return table


def finished(table: Table) -> list[str]:
    """Arms with at least one figure."""
    return [arm for arm in table.arms if any(arm in line.cells and line.cells[arm].samples for line in table.lines)]


class Counted:
    """A target that counts the tokens that go through it."""

    def __init__(self, target: Transformer):
        self._target = target
        self.tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def forward(self, tokens: mx.array, *rest: Any, **named: Any) -> Any:
        self.tokens += tokens.shape[0]
        return self._target.forward(tokens, *rest, **named)


def template_table(bench: Synthetic, count: int, template: int, rows: int, accept: Accept) -> Table:
    """How many prompt tokens go through the target when requests share a template. Each yields one token, which its
    prefill brings, so that nothing else goes through it.
    """
    draw = random.Random(0)
    vocabulary = bench.shape.vocabulary
    shared = [draw.randrange(vocabulary) for _ in range(template)]
    requests = [
        Request(
            f"r{n}",
            (*shared, *(draw.randrange(vocabulary) for _ in range(draw.randint(16, 64)))),
            Sampling(max_tokens=1, seed=n),
        )
        for n in range(count)
    ]
    least = template + sum(len(request.tokens) - template for request in requests)
    counted: Any = Counted(bench.target)
    table = Table(f"{describe(bench)}, {count} requests that share {template} tokens, prefill")
    continuation = bench.continuation(requests, accept)
    cell = Cell()
    run = attempt(cell, Draftmill(lambda: bench.engine(rows, longest(requests), continuation, target=counted)).runner)
    begin = time.perf_counter()
    texts = attempt(cell, lambda: run.run(requests)) if run else None
    if texts is None:
        table.facts.append({"failed": cell.error})
        return table
    table.facts.append(
        {
            "prompt tokens": sum(len(request.tokens) for request in requests),
            "template and suffixes": least,
            "prefilled": counted.tokens,
            "ratio": counted.tokens / least,
            "seconds": time.perf_counter() - begin,
        }
    )
    return table


def idle_table(
    bench: Synthetic,
    rows: Sequence[int],
    accept: Accept,
    context: int,
    arms: Sequence[str],
    rounds: int = 16,
    repeats: int = 4,
) -> Table:
    """The share of wall time in which the device had nothing queued; `idle` says how it is measured."""
    table = Table(f"{describe(bench)}, idle share of the device, {described(accept)}, context {context}")
    ours = [arm for arm in arms if arm in ("depth-0", "full-depth", "adaptive")]
    for count in rows:
        tokens = int((2 * repeats + 1) * (rounds + 2) * max(accept))
        requests = bench.rows(count, context, tokens, accept, 2 * repeats)
        continuation = bench.continuation(requests, accept)
        for arm, make in bench.arms(count, requests, continuation, ours).items():
            cell = Cell()
            session = attempt(cell, lambda make=make, requests=requests: make().open(requests))
            idle = attempt(cell, lambda session=session: measure_idle(session, rounds, repeats)) if session else None
            fact: dict[str, Any] = {"rows": count, "arm": arm}
            if idle:
                plain, filled, filler = (1000 * sum(turn[i] for turn in idle.turns) / repeats for i in range(3))
                fact |= {"idle share": idle.share, "least": min(idle.shares), "most": max(idle.shares)}
                fact |= {"round ms": plain, "filled ms": filled, "filler ms": filler, "_turns": idle.turns}
            table.facts.append(fact if idle else {**fact, "failed": cell.error})
            if session:
                session.close()
            del session
            mx.clear_cache()
    return table


def describe(bench: Synthetic) -> str:
    weights = str(bench.target.dtype).removeprefix("mlx.core.") if bench.bits == 16 else f"{bench.bits}-bit"
    return f"{bench.shape.name} {weights}"
