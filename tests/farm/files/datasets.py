"""A large CSV file through the whole farm: what submitting and collecting it take of memory."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time

from tests.farm.farm import ROOT, Farm
from tests.farm.figure import Figure
from tests.farm.files.memory import peak_memory
from tests.worker.run_worker import PAIR

MOST_PRODUCER, MOST_REDIS = 300 * 2**20, 2**30


def csv_rows(full: bool) -> Figure:
    """Submitted and collected by the command line; nothing is collected before all is submitted."""
    rows = 100_000 if full else 1_000
    with Farm(rows=64, round_seconds=0, lease=10) as farm:
        source, out = farm.folder / "in.csv", farm.folder / "out.jsonl"
        with source.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text"])
            writer.writerows((f"r-{n}", f"Row {n}: {'some words, ' * 40}") for n in range(rows))
        farm.start()
        options = ("--template", "Summarise: {{ text }}", "--keep", "text", "--max-tokens", "1", "--pair", PAIR)
        begin = time.monotonic()
        batch, submitting = _peak(farm, "submit", str(source), *options)
        submitted = time.monotonic()
        _, collecting = _peak(farm, "collect", batch, "-o", str(out), "--follow", "--sorted")
        ended = time.monotonic()
        redis = int(farm.redis.info("memory")["used_memory_peak"])
        results = sum(1 for _ in out.open("rb")) if out.exists() else 0
    text = (
        f"{results:,} results; submit {submitting / 2**20:,.0f} MB in {submitted - begin:.0f} s, "
        f"collect {collecting / 2**20:,.0f} MB in {ended - submitted:.0f} s, Redis {redis / 2**20:,.0f} MB"
    )
    holds = results == rows and max(submitting, collecting) < MOST_PRODUCER and redis < MOST_REDIS
    return Figure(text, holds)


def _peak(farm: Farm, *arguments: str) -> tuple[str, int]:
    """Runs a command; returns what it printed and the most memory it had, in bytes."""
    environment = os.environ | {"REDIS_URL": farm.server.url, "DRAFTMILL_HOME": str(farm.folder)}
    command = [sys.executable, "-m", "draftmill", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_memory(process.pid))
        time.sleep(0.05)
    return process.communicate()[0].strip(), peak
