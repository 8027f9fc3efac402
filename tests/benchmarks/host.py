"""What a round costs the host: processor time of the thread that builds it, and the operations that it hands to MLX.

`python -m tests.benchmarks.host` in the root of the repository. A model with the layers of Qwen3-4B and next to no
arithmetic, by this engine and by mlx-lm's `BatchGenerator`, in turns. MLX computes on threads of its own, so the time
of the thread that calls is what the host pays: Python, and MLX's walk through the graph.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from unittest.mock import patch

import click
import mlx.core as mx

from draftmill.engine.bench import shapes
from draftmill.engine.bench.arms import Session, synchronize
from draftmill.engine.bench.synthetic import Synthetic

LAYERS = 36
ARMS = {"mlx-lm": "mlx-batch", "depth 0": "depth-0", "full depth": "full-depth"}
WARM = 8
"""Rounds before anything is counted: the first ones of a process compile."""


@click.command()
@click.option("--rows", multiple=True, type=click.IntRange(1), default=(1, 8, 32), show_default=True)
@click.option("--context", type=click.IntRange(1), default=64, show_default=True, help="Tokens of a prompt.")
@click.option("--rounds", type=click.IntRange(1), default=24, show_default=True, help="In each turn.")
@click.option("--turns", type=click.IntRange(1), default=5, show_default=True)
def main(rows: tuple[int, ...], context: int, rounds: int, turns: int) -> None:
    """Compare what rounds of this engine and steps of mlx-lm cost the host."""
    tiny = shapes.SHAPES["tiny-qwen3"]
    deep = replace(tiny, name="deep-qwen3", config=tiny.config | {"num_hidden_layers": LAYERS})
    shapes.SHAPES[deep.name] = deep
    with tempfile.TemporaryDirectory() as cache:
        bench = Synthetic(deep.name, 16, Path(cache))
        click.echo("| rows | what | host ms a round, median | of mlx-lm's step (turns) | operations |")
        click.echo("|---|---|---|---|---|")
        for count in rows:
            show(count, *measured(bench, count, context, rounds, turns))


def measured(
    bench: Synthetic, rows: int, context: int, rounds: int, turns: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Of each arm the host's milliseconds a round, turn by turn, and the operations of a round."""
    accept = bench.block / 2
    requests = bench.rows(rows, context, int(accept * (WARM + rounds * turns)) + 64, accept, turns)
    made = bench.arms(rows, requests, bench.continuation(requests, accept), list(ARMS.values()))
    sessions = {name: made[arm]().open(requests) for name, arm in ARMS.items()}
    spent: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        for _ in range(WARM):
            session.advance()
    for _ in range(turns):
        for name, session in sessions.items():
            spent[name].append(1000 * host_seconds(session, rounds))
    operations = {name: counted(session) for name, session in sessions.items()}
    for session in sessions.values():
        session.close()
    return spent, operations


def host_seconds(session: Session, rounds: int) -> float:
    """Processor seconds of this thread for a round, the median of so many."""
    spent: list[float] = []
    for _ in range(rounds):
        begin = time.thread_time()
        session.advance()
        spent.append(time.thread_time() - begin)
    synchronize()
    return median(spent)


def counted(session: Session) -> int:
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


def show(rows: int, spent: dict[str, list[float]], operations: dict[str, int]) -> None:
    for name, turns in spent.items():
        ratios = [own / base for own, base in zip(turns, spent["mlx-lm"], strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        click.echo(f"| {rows} | {name} | {median(turns):.2f} | {spread} | {operations[name]:,} |")


if __name__ == "__main__":
    main()
