"""What a round costs the host: processor time of the thread that builds it, and the operations that it hands to MLX.

`python -m tests.benchmarks.host` in the root of the repository. A model with as many layers as Qwen3-4B and next to no
arithmetic, by this engine and by mlx-lm's `BatchGenerator`, in turns. MLX computes on threads of its own, so the time
of the thread that calls is what the host pays: Python, which builds a graph, and MLX's walk through it.

MLX's CPU backend lets the caller be a hundred operations ahead; then the caller sleeps until ten of them have run. To
fall asleep and to wake up costs it time, and its caches are cold then. So a walk through the same operations takes
longer where these have more arithmetic. A wide step shows what that comes to: mlx-lm's own model over as many tokens of
each row as a round with drafts has.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol
from unittest.mock import patch

import click
import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from draftmill.engine.bench import shapes
from draftmill.engine.bench.arms import synchronize
from draftmill.engine.bench.synthetic import Synthetic

LAYERS = 36
BASE, WIDE = "mlx-lm", "mlx-lm, wide"
LEAST = dict(num_attention_heads=1, num_key_value_heads=1, head_dim=8, intermediate_size=16)
"""Of the target and of its draft, in place of what the tiny shape has."""

ARMS = {BASE: "mlx-batch", "depth 0": "depth-0", "full depth": "full-depth"}
WARM = 8
"""Rounds before anything is counted: the first ones of a process compile."""


class Spent(NamedTuple):
    """What a round takes: processor milliseconds of the thread that calls, of that before it hands a graph to MLX, and
    of all threads; and how often that thread waited.
    """

    host: float
    building: float
    process: float
    waits: float


class Steps(Protocol):
    """Something that runs step by step."""

    def advance(self) -> object: ...

    def close(self) -> None: ...


class WideSession:
    """Steps of mlx-lm's model over a block of tokens of each row, half of which stay."""

    def __init__(self, model: Any, rows: int, context: int, block: int):
        self.model, self.block = model, block
        self.cache: Any = make_prompt_cache(model)
        self.tokens = mx.zeros((rows, block), mx.int32)
        model(mx.zeros((rows, context), mx.int32), cache=self.cache)

    def advance(self) -> None:
        before = self.tokens
        self.tokens = mx.argmax(self.model(before, cache=self.cache), axis=-1)
        mx.async_eval(self.tokens)
        trim_prompt_cache(self.cache, self.block // 2)
        before.tolist()

    def close(self) -> None:
        self.cache = None


@click.command()
@click.option("--rows", multiple=True, type=click.IntRange(1), default=(1, 8, 32), show_default=True)
@click.option("--context", type=click.IntRange(1), default=32, show_default=True, help="Tokens of a prompt.")
@click.option("--rounds", type=click.IntRange(1), default=8, show_default=True, help="In each turn.")
@click.option("--turns", type=click.IntRange(1), default=5, show_default=True)
@click.option("--arithmetic", is_flag=True, help="Have four heads of 32, for which the host waits longer.")
def main(rows: tuple[int, ...], context: int, rounds: int, turns: int, arithmetic: bool) -> None:
    """Compare what rounds of this engine and steps of mlx-lm cost the host."""
    tiny, least = shapes.SHAPES["tiny-qwen3"], {} if arithmetic else LEAST
    config = tiny.config | least | {"num_hidden_layers": LAYERS}
    deep = replace(tiny, name="deep-qwen3", config=config, draft=tiny.draft | least)
    shapes.SHAPES[deep.name] = deep
    with tempfile.TemporaryDirectory() as cache:
        bench = Synthetic(deep.name, 16, Path(cache))
        click.echo(
            "| rows | what | operations | host, ms | of that building the graph | all threads, ms | waits "
            "| of mlx-lm's step (turns) | of a wide one |"
        )
        click.echo("|" + 9 * "---|")
        for count in rows:
            show(count, *measured(bench, count, context, rounds, turns))


def measured(
    bench: Synthetic, rows: int, context: int, rounds: int, turns: int
) -> tuple[dict[str, list[Spent]], dict[str, int]]:
    """What a round of each arm takes, turn by turn, and the operations of a round."""
    accept = bench.block / 2
    requests = bench.rows(rows, context, int(accept * (WARM + rounds * turns)) + 64, (accept,), turns)
    made = bench.arms(rows, requests, bench.continuation(requests, (accept,)), list(ARMS.values()))
    sessions: dict[str, Steps] = {name: made[arm]().open(requests) for name, arm in ARMS.items()}
    sessions[WIDE] = WideSession(bench.model, rows, context, bench.block)
    spent: dict[str, list[Spent]] = {name: [] for name in sessions}
    for session in sessions.values():
        for _ in range(WARM):
            session.advance()
    for _ in range(turns):
        for name, session in sessions.items():
            spent[name].append(spent_by(session, rounds))
    operations = {name: counted(session) for name, session in sessions.items()}
    for session in sessions.values():
        session.close()
    return spent, operations


def spent_by(session: Steps, rounds: int) -> Spent:
    """What a round takes, the median of so many."""
    spent: list[tuple[float, ...]] = []
    for _ in range(rounds):
        before = used()
        with walks() as walked:
            session.advance()
        host, process, waits = (after - begin for after, begin in zip(used(), before, strict=True))
        spent.append((host, host - 1000 * sum(walked), process, waits))
    synchronize()
    return Spent(*(median(column) for column in zip(*spent, strict=True)))


def used() -> tuple[float, float, int]:
    """Processor milliseconds of this thread and of all threads, and how often this one has waited, so far."""
    waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    return 1000 * time.thread_time(), 1000 * time.process_time(), waits


@contextmanager
def walks() -> Iterator[list[float]]:
    """Times MLX's walk through each graph that is handed over meanwhile: processor seconds of this thread."""
    found: list[float] = []
    hand_over = mx.async_eval

    def timed(*arrays: object) -> None:
        begin = time.thread_time()
        hand_over(*arrays)
        found.append(time.thread_time() - begin)

    with patch.object(mx, "async_eval", timed):
        yield found


def counted(session: Steps) -> int:
    """Operations in the graph of a round."""
    with graphs() as found:
        session.advance()
    return found.total()


@contextmanager
def graphs() -> Iterator[Counter[str]]:
    """Counts the operations of all graphs that are handed over meanwhile, by name."""
    found: Counter[str] = Counter()
    hand_over = mx.async_eval

    def counting(*arrays: object) -> None:
        with tempfile.NamedTemporaryFile("r", suffix=".dot") as dot:
            mx.export_to_dot(dot.name, *arrays)
            found.update(line.split('"')[1] for line in dot if "rectangle" in line)
        hand_over(*arrays)

    with patch.object(mx, "async_eval", counting):
        yield found


def show(rows: int, spent: dict[str, list[Spent]], operations: dict[str, int]) -> None:
    for name, turns in spent.items():
        ratios, wide = (
            [own.host / its.host for own, its in zip(turns, spent[base], strict=True)] for base in (BASE, WIDE)
        )
        host, building, process, waits = (median(column) for column in zip(*turns, strict=True))
        click.echo(
            f"| {rows} | {name} | {operations[name]:,} | {host:.1f} | {building:.1f} | {process:.1f} | {waits:.0f} "
            f"| {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {median(wide):.2f} |"
        )


if __name__ == "__main__":
    main()
