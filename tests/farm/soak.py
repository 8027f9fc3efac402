"""The fault suite at full size, as a table: `make soak`, or `python -m tests.farm.soak [--small] [NAME…]`.

Every fault runs against a real server and real worker processes, whose engine is replaced by one of set speed; the
engine itself has rows of its own: `tokens`, and `architectures` behind the whole command.
"""

from __future__ import annotations

import sys
import time

import click

from draftmill.producer.queue.errors import heed_signals
from tests.farm import dying, generation, load, own_disk, redis_faults
from tests.farm.figure import Fault
from tests.farm.files import datasets, outputs
from tests.farm.models.architectures import architectures
from tests.farm.servers import fail_overs
from tests.farm.sharing import costs, fairness, looks, neighbours
from tests.farm.simulated.day import day

NOTHING = "0 lost, 0 duplicated, 0 stuck"

FAULTS = (
    Fault("kills", f"100 kill -9 over 20,000 jobs, 4 workers: {NOTHING}; back within lease + reap", dying.kills),
    Fault("crashes", f"50 crashes at each of 5 steps: {NOTHING}", dying.crashes),
    Fault("cleaners", f"kills, with 3 loops of `rq info` and RQ's clean-up: {NOTHING}", dying.kills_among_cleaners),
    Fault("sleeps", "20 SIGSTOPs of two leases: 0 duplicated", dying.sleeps),
    Fault("redis-kills", f"10 kill -9 of Redis, 60 s away: {NOTHING}, same processes", redis_faults.redis_kills),
    Fault("long-outage", f"Redis away for 3 leases, 3 times: 0 leases lost, {NOTHING}", redis_faults.long_outage),
    Fault("poison", "5 poison among 1,000: 5 failed as poison, 995 done", dying.poison),
    Fault(
        "gpu-aborts", "10 aborts of a GPU in 2,000 jobs: 0 lost, 0 poisoned, 0 blamed, back in 10 s", dying.gpu_aborts
    ),
    Fault("submits", "10,000 lines submitted twice and cut at random: 10,000 results", load.interrupted_submits),
    Fault("clocks", f"clocks off by 120 s, one that jumps: {NOTHING}", dying.clocks),
    Fault("hostile-jobs", "1,000 hostile bodies: all refused, nothing run, worker alive", load.hostile_jobs),
    Fault("hostile-lines", "1,000 hostile lines: all refused", load.hostile_lines),
    Fault("turns", "20 batches of one user beside 1 of another: turns within 10 % of fair", fairness.turns),
    Fault("sick-jobs", "5 jobs on their last lease beside 180: these as fast as without", fairness.sick_jobs),
    Fault("day", "100 Macs of 12 kinds, 1,000 batches: ideal schedule + 5 %, users within 10 %, all once", day),
    Fault("rq-buttons", "RQ's cancel, delete and empty over 1,000 jobs: one outcome a line", neighbours.rq_buttons),
    Fault("wires", f"producers and workers of two wires mixed: {NOTHING}", neighbours.wires),
    Fault("claims", "50,000 jobs in 1, 1,000 and 5,000 batches: 1, 1.5 and 2 ms a job, 64 in 10 ms", costs.claims),
    Fault("renewals", "64 jobs of 2 MB: 2 ms", costs.renewals),
    Fault(
        "traffic",
        "a job of 1.2 KB: 5 KB and 15 commands to Redis, 3 KB in its append-only file; "
        "an idle worker: 4 KB/s, 4 commands/s, 0.03 % of a core",
        costs.traffic,
    ),
    Fault("looks", "page, exporter and status, 10,000 open batches and 100 workers: 30 ms a look", looks.looks),
    Fault("waiting", "serve with 100 batches that wait: 2 % of a core", looks.waiting),
    Fault("speed", "500 jobs/s a worker, 3,000 lines submitted/s", load.speed),
    Fault("csv-rows", "100,000 CSV rows: producer below 300 MB, Redis below 1 GB", datasets.csv_rows),
    Fault("two-servers", "run killed under one OUT, two servers in turn: 0 lost, 0 twice", outputs.two_servers),
    Fault(
        "followed",
        "1,000,000 rows submitted and collected at once: Redis below 200 MB, commands 150 MB, 600 s",
        outputs.followed,
    ),
    Fault("leaks", "100,000 jobs: memory back to its baseline + 5 %", load.leaks),
    Fault("full-memory", f"maxmemory reached: {NOTHING}", redis_faults.full_memory),
    Fault("full-disk", f"disk full under the append-only file: {NOTHING}", redis_faults.full_disk),
    Fault("own-disk", f"a worker's own disk full: {NOTHING}, same processes", own_disk.own_disk),
    Fault("read-only", f"read-only replica: {NOTHING}", redis_faults.read_only),
    Fault("half-open", f"connections that go dead: {NOTHING}", redis_faults.half_open),
    Fault("frozen", f"a server that answers after the leases: {NOTHING}", redis_faults.frozen),
    Fault("sentinel", f"10 fail-overs by Sentinel, 4 workers: {NOTHING}, same processes", fail_overs.fail_overs),
    Fault("script-flush", f"SCRIPT FLUSH all the time: {NOTHING}", redis_faults.script_flush),
    Fault("tokens", "200 seeds of random load: every row the tokens of mlx-lm in float32", generation.tokens),
    Fault("architectures", "each one through `run`, killed once: every row the tokens of mlx-lm", architectures),
)


@click.command(help=__doc__)
@click.option("--small", is_flag=True, help="As small as in `make test`.")
@click.argument("names", nargs=-1, metavar="[NAME]…", type=click.Choice([fault.name for fault in FAULTS]))
def main(small: bool, names: tuple[str, ...]) -> None:
    heed_signals()  # so that no process of a fault goes on without this one
    missed = 0
    print("| fault | target | measured | holds |\n|---|---|---|---|")
    for fault in FAULTS:
        if names and fault.name not in names:
            continue
        begin = time.monotonic()
        figure = fault.run(not small)
        missed += not figure.holds
        seconds = f"{time.monotonic() - begin:.0f} s"
        verdict = "yes" if figure.holds else "**no**"
        print(f"| {fault.name} | {fault.target} | {figure.text} ({seconds}) | {verdict} |", flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
