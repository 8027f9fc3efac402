"""How long a start takes under `draftmill run`: from the worker's start until it is ready, and until its first answer.

    python -m tests.benchmarks.start

Each turn is a first start, with an empty cache, and a second one with what that left; both with an empty Redis and the
example prompts. Processor seconds are those of the worker and its child processes. It needs Linux's /proc.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import click

from draftmill.producer.queue import batches, wire
from tests.redis_server import fresh_server

from .overhead import ROOT, cpu_seconds

LOOK_EVERY = 0.02
"""Seconds between two looks."""


class Start(NamedTuple):
    """Seconds from a worker's start until it was ready and until it had answered, by the clock and of the processor."""

    ready: float
    ready_cpu: float
    answered: float
    answered_cpu: float


def start(home: Path) -> Start:
    """A start with what earlier ones left in `home`; it ends with the first answer in Redis."""
    with tempfile.TemporaryDirectory() as out, fresh_server() as server, server.connect() as redis:
        command = [sys.executable, "-m", "draftmill", "run", "producer/examples/prompts.jsonl", "-o", f"{out}/a.jsonl"]
        settings = {"HOME": str(home), "DRAFTMILL_HOME": out, "REDIS_URL": server.url}
        with subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, stderr=subprocess.DEVNULL) as run:
            children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
            wait(run, lambda: bool(children.read_text()))
            begin, worker = time.perf_counter(), int(children.read_text().split()[0])
            found: list[float] = []
            for happened in (
                lambda: bool(redis.exists(wire.WORKERS)),
                lambda: any(batch.done for batch in batches.list_batches(redis)),
            ):
                wait(run, happened)
                found += [time.perf_counter() - begin, cpu_seconds(worker, children=True)]
            run.terminate()
    return Start(*found)


def wait(run: subprocess.Popen[bytes], happened: Callable[[], bool]) -> None:
    while not happened():
        if run.poll() is not None:
            raise click.ClickException(f"draftmill run ended with exit code {run.returncode}")
        time.sleep(LOOK_EVERY)


@click.command()
@click.option("--turns", type=click.IntRange(1), default=3, show_default=True)
def main(turns: int) -> None:
    """Measure first and second starts in turn."""
    found: dict[str, list[Start]] = {"first": [], "second": []}
    click.echo("start    ready: clock  processor    first answer: clock  processor")
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as home:
            for name, starts in found.items():
                starts.append(start(Path(home)))
                show(name, starts[-1])
    for name, starts in found.items():
        show(f"{name}, median", Start(*map(median, zip(*starts, strict=True))))


def show(name: str, taken: Start) -> None:
    click.echo(f"{name:<16} " + "".join(f"{seconds:8.1f}" for seconds in taken))


if __name__ == "__main__":
    main()
