"""How often the bench's proof of state notices a planted fault: `python -m tests.benchmarks.detection --help`.

Each trial prefills rows and decodes with blocks of drafts; the fault is there throughout, in one round, or in one slot.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from draftmill.engine.bench.synthetic import Synthetic
from tests.engine.planted import ShiftedMask, ahead, one_place, open_session, spoil


@click.command()
@click.option("--shape", default="tiny-qwen3", show_default=True)
@click.option("--rows", default=4, show_default=True)
@click.option("--context", default=64, show_default=True)
@click.option("--trials", default=20, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path("/tmp/detection"))
def main(shape: str, rows: int, context: int, trials: int, cache: Path) -> None:
    """Count how many of so many trials of each fault are noticed."""
    bench = Synthetic(shape, 16, cache)
    operations, sound = bench.target.operations, bench.target.turns
    target: Any = bench.target

    def turns(fault: Callable[..., Any]) -> None:
        target.turns = fault(target)

    def mask(by: int) -> None:
        target.operations = ShiftedMask(operations.winners, operations.launch, operations.in_place, by)

    faults: dict[str, Callable[[], None]] = {
        "none": lambda: None,
        "rotation, one token's for all": lambda: turns(one_place),
        "rotation, one position too far": lambda: turns(ahead),
        "mask, one key too many": lambda: mask(1),
        "mask, one key too few": lambda: mask(-1),
    }
    for name, plant in faults.items():
        for once in (False, True) if name != "none" else (False,):
            noticed = 0
            for trial in range(trials):
                if not once:
                    plant()
                session = open_session(bench, rows, context, trial)
                for number in range(6):
                    if once and number == 2:
                        plant()
                    session.advance()
                    if once and number == 2:
                        target.operations, target.turns = operations, sound
                target.operations, target.turns = operations, sound
                noticed += session.flaw() is not None
                session.close()
                del session
            print(f"{name:<32} {'in one round' if once else 'throughout':<14} {noticed} of {trials}", flush=True)
    noticed = 0
    for trial in range(trials):
        session = open_session(bench, rows, context, trial)
        for _ in range(4):
            session.advance()
        spoil(session, random.Random(trial))
        noticed += session.flaw() is not None
        session.close()
    print(f"{'stale slot, one layer':<32} {'':<14} {noticed} of {trials}", flush=True)


if __name__ == "__main__":
    main()
