"""The row budget against every fixed depth, on simulated machines: `python -m tests.benchmarks.budget` in the root.

For each machine, number of rows and kind of drafts, requests are worked through by the budget, which has fitted noisy
measurements of the machine, and at each fixed depth. Prints the budget's speed over that of the best fixed depth: the
mean and the worst by machine and kind, then the worst cases. Takes some minutes; `--quick` takes less than one.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import Pool
from statistics import mean

import click

from draftmill.engine.depth.budget import Budget
from tests.engine.depth.simulation import (
    BLOCK,
    BUSY_HOST,
    HOST_BOUND,
    MACHINES,
    PLANNING,
    REFERENCE_BLAS,
    Job,
    Machine,
    chance_of,
    differing,
    drifting,
    equal,
    hindsight,
    jobs,
    mixed,
    switching,
    turning,
    work,
)

Case = tuple[Machine, int, str]

ALL = (*MACHINES, BUSY_HOST, REFERENCE_BLAS, HOST_BOUND, PLANNING)
"""The busy host takes longer than the measurements that the budget is given say, and not always as long."""


def kinds(count: int) -> dict[str, Callable[[int, float], float]]:
    levels = {f"equal {chance}": equal(chance) for chance in (0.02, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)}
    return levels | {
        "differing": differing(0.2, 0.95),
        "two kinds": lambda number, place: 0.95 if number % 2 else 0.2,
        "drifting": drifting(0.2, 0.95, count),
        "turning": turning(0.2, 0.95),
        "mixed": mixed,
        "switching": switching(0.1, 0.9),
        "short, useless": equal(0.0),
        "short, 2 each": equal(chance_of(2)),
    }


def asked(rows: int, kind: str) -> list[Job]:
    """Requests of a kind, several for each row."""
    count, lengths = max(24, 4 * rows), (100, 300)
    if kind.startswith("short"):  # one set of rows, the turn of a benchmark
        count, lengths = rows, (40, 120)
    elif kind == "switching":
        count, lengths = 2 * rows, (400, 400)
    return jobs(count, kinds(count)[kind], lengths=lengths)


def measure(case: Case) -> tuple[Case, float, float]:
    """The budget's tokens per second over those of the best fixed depth, and over those of depth 0."""
    machine, rows, kind = case
    requests = asked(rows, kind)
    found = work(machine, rows, requests, Budget(machine.measure(rows, noise=0.02), BLOCK)).rate
    return case, found / hindsight(machine, rows, requests).rate, found / work(machine, rows, requests, 0).rate


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Fewer numbers of rows.")
def main(quick: bool) -> None:
    counts = (1, 8, 32) if quick else (1, 2, 3, 4, 8, 16, 32, 64)
    cases = [(machine, rows, kind) for machine in ALL for rows in counts for kind in kinds(1)]
    with Pool() as pool:
        results = list(pool.imap(measure, cases))
    print(f"{'machine':18}{'drafts':14}{'mean':>8}{'worst':>8}  at rows   against depth 0, mean")
    for machine in ALL:
        for kind in kinds(1):
            own = [result for result in results if result[0][0] == machine and result[0][2] == kind]
            worst = min(own, key=lambda result: result[1])
            average, plain = mean(result[1] for result in own), mean(result[2] for result in own)
            print(f"{machine.name:18}{kind:14}{average:8.3f}{worst[1]:8.3f}{worst[0][1]:9}{plain:13.2f}")
    ratios = sorted((ratio, case[0].name, case[1], case[2]) for case, ratio, _ in results)
    below = sum(ratio < 0.97 for ratio, *_ in ratios)
    print(f"\n{len(ratios)} cases, mean {mean(ratio for ratio, *_ in ratios):.3f}, {below} below 0.97; the worst:")
    for ratio, name, rows, kind in ratios[:6]:
        print(f"  {ratio:.3f}  {name}, {rows} rows, {kind}")


if __name__ == "__main__":
    main()
