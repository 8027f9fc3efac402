"""What it costs a worker under load that Prometheus reads its metrics: seconds of a scrape, and speed lost.

    python -m tests.benchmarks.scrape

One scrape in 15 s is lost in the noise. So it scrapes far more often in every other stretch of time, compares
neighbouring stretches, and divides what is lost by the number of scrapes. Speed is tokens per second of the worker's
processor time, which other programs on the machine disturb less than the clock; NaN where there is no /proc.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

import click

from draftmill.producer.queue import batches, fleet, wire
from tests.redis_server import RedisServer

from .overhead import ROOT, cpu_seconds, write_model

EVERY = 15.0
"""Seconds between two scrapes of deploy/monitoring/prometheus.yml."""


def scrape(address: str) -> tuple[float, float]:
    """Seconds that it took, and tokens generated so far."""
    begin = time.perf_counter()
    with urlopen(f"http://{address}/metrics") as page:
        text = page.read().decode()
    seconds = time.perf_counter() - begin
    found = re.search(r"^draftmill_generated_tokens_total (\S+)$", text, re.MULTILINE)
    assert found
    return seconds, float(found[1])


def stretch(pid: int, address: str, seconds: float, rate: float) -> tuple[float, list[float]]:
    """Tokens per processor second while so many scrapes are made each second, and what each of them took."""
    (_, before), used, begin = scrape(address), cpu_seconds(pid), time.perf_counter()
    taken = []
    while (now := time.perf_counter()) < begin + seconds:
        if rate:
            taken.append(scrape(address)[0])
            time.sleep(max(0.0, now + 1 / rate - time.perf_counter()))
        else:
            time.sleep(seconds)
    _, after = scrape(address)
    return (after - before) / (cpu_seconds(pid) - used), taken


@click.command()
@click.option("--pairs", type=click.IntRange(1), default=12, show_default=True, help="Stretches of each kind.")
@click.option("--seconds", type=click.FloatRange(1), default=4.0, show_default=True, help="Of each stretch.")
@click.option("--rate", type=click.FloatRange(1), default=20.0, show_default=True, help="Scrapes in a second.")
@click.option("--rows", type=click.IntRange(1), default=16, show_default=True)
def main(pairs: int, seconds: float, rate: float, rows: int) -> None:
    """Measure scrapes of a worker under load."""
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as name:
        folder = Path(name)
        write_model(folder / "model")
        server = RedisServer(folder)
        server.start()
        pair = str(folder / "model")
        options = ["--pair", pair, "--redis-url", server.url, "--max-rows", str(rows), "--metrics-port", "0"]
        command = [sys.executable, "-m", "draftmill", "worker", *options]
        worker = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert worker.stdout
        try:
            assert "ready" in worker.stdout.readline()
            with server.connect() as redis:
                batch = batches.BatchInfo("load", pair, "normal", 2000)
                sampling = wire.Sampling(max_tokens=128)
                bodies = [
                    wire.JobBody(
                        batch=batch.id, custom_id=str(n), pair=pair, prompts=(f"Why {n}?",), sampling=sampling, line=n
                    )
                    for n in range(batch.total)
                ]
                batches.create(redis, batch)
                batches.submit_chunk(redis, batch, bodies)
                time.sleep(5)
                (report,) = fleet.reports(redis)
            measure(worker.pid, report.text("metrics"), pairs, seconds, rate)
        finally:
            worker.kill()
            worker.wait()
            server.kill()


def measure(pid: int, address: str, pairs: int, seconds: float, rate: float) -> None:
    taken: list[float] = []
    lost = []
    for _ in range(pairs):
        (quiet, _), (scraped, times) = stretch(pid, address, seconds, 0), stretch(pid, address, seconds, rate)
        taken += times
        lost.append((1 - scraped / quiet) / (len(times) / seconds) / EVERY)
        click.echo(f"{quiet:8.1f} tokens/s, {scraped:8.1f} with {len(times) / seconds:.0f} scrapes a second")
    taken.sort()
    quantile = {q: taken[int(q * (len(taken) - 1))] * 1000 for q in (0.5, 0.99, 1)}
    click.echo(f"a scrape: {quantile[0.5]:.1f} ms, 99 % {quantile[0.99]:.1f} ms, slowest {quantile[1]:.1f} ms")
    spread = statistics.stdev(lost) / len(lost) ** 0.5 if len(lost) > 1 else float("nan")
    mean = statistics.mean(lost)
    click.echo(f"one in {EVERY:.0f} s costs {100 * mean:.4f} % of its speed, standard error {100 * spread:.4f} %")


if __name__ == "__main__":
    main()
