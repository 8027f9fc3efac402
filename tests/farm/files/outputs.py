"""OUT while things go wrong around it: two servers that take turns under one OUT, and what following costs Redis."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from draftmill.producer.queue import batches, wire
from tests.farm.farm import ROOT, Farm
from tests.farm.figure import Figure
from tests.farm.files.memory import peak_memory
from tests.producer.small_model import small_model
from tests.redis_server import fresh_server
from tests.worker.run_worker import PAIR

DRAFTMILL = [sys.executable, "-m", "draftmill"]
MOST_REDIS = 200 * 2**20
"""For a batch of any size: a window of its lines, the results of some seconds, and its record."""

MOST_CLIENT = 150 * 2**20
"""For a command that submits or collects a batch of any size."""

MOST_SECONDS = 600
"""For a million rows, of an engine that costs nothing."""

MOST_WAITING = 10_000
"""Results that OUT has or is to have, and Redis still: of four seconds."""


def two_servers(full: bool) -> Figure:
    """`run` is killed again and again, each time with the other server next; one of them is emptied meanwhile."""
    from draftmill.engine.models import boxed
    from draftmill.producer.queue import paths

    lines, kills = (900, 8) if full else (60, 2)
    with (
        fresh_server() as one,
        fresh_server() as two,
        tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as name,
    ):
        folder = Path(name)
        source, out = folder / "in.jsonl", folder / "out.jsonl"
        asked = (f'{{"id": "r-{n}", "prompt": "a", "max_tokens": {20 + n % 50}}}\n' for n in range(lines))
        source.write_text("".join(asked))
        pair = small_model(boxed.unbox(paths.cache_dir()), folder / "model")
        command = [*DRAFTMILL, "run", str(source), "-o", str(out), "--pair", pair]
        shortened, before = 0, b""

        def start(server: str) -> subprocess.Popen[bytes]:
            environment = os.environ | {"REDIS_URL": server, "DRAFTMILL_HOME": name}
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

        for n in range(kills):
            process = start((one, two)[n % 2].url)
            while process.poll() is None and written(out) < (n + 1) * lines // (kills + 1):
                time.sleep(0.01)
            process.kill()
            process.wait()
            if n == 1:
                with one.connect() as redis:
                    redis.flushall()
            after = whole(out)
            shortened += not after.startswith(before)
            before = after
        code = start((one, two)[kills % 2].url).wait()
        shortened += not whole(out).startswith(before)
        ids = [orjson.loads(line)["custom_id"] for line in out.read_bytes().splitlines()]
    lost, twice = lines - len(set(ids)), len(ids) - len(set(ids))
    text = f"{kills} kills; {lost} lost, {twice} twice of {lines:,}; OUT lost lines {shortened} times"
    return Figure(text, (code, lost, twice, shortened) == (0, 0, 0, 0))


def written(out: Path) -> int:
    return out.read_bytes().count(b"\n") if out.exists() else 0


def whole(out: Path) -> bytes:
    """The whole lines of OUT: a kill may tear the last one."""
    content = out.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def followed(full: bool) -> Figure:
    """A batch that is submitted and collected at once: Redis holds a window of it and the latest results."""
    rows = 1_000_000 if full else 1_500
    with Farm(rows=64 if full else 8, round_seconds=0 if full else 0.005, lease=10) as farm:
        source, out = farm.folder / "in.jsonl", farm.folder / "out.jsonl"
        with source.open("w") as file:
            file.writelines(f'{{"id": "r-{n}", "prompt": "{"word " * 100}", "max_tokens": 1}}\n' for n in range(rows))
        environment = os.environ | {"REDIS_URL": farm.server.url, "DRAFTMILL_HOME": str(farm.folder)}
        for _ in range(4 if full else 1):
            farm.start()
        begin = time.monotonic()
        submit = [*DRAFTMILL, "submit", str(source), "--pair", PAIR]
        silent: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        submitting = subprocess.Popen(submit, cwd=ROOT, env=environment, **silent)
        farm.wait(lambda: bool(farm.redis.zcard(wire.BATCHES)), 300)  # it reads the file before
        (batch,) = batches.newest(farm.redis)
        collect = [*DRAFTMILL, "collect", batch, "-o", str(out), "--follow"]
        collecting = subprocess.Popen(collect, cwd=ROOT, env=environment, **silent)
        waiting, memory = 0, {submitting: 0, collecting: 0}
        while collecting.poll() is None:
            waiting = max(waiting, farm.redis.xlen(wire.results_key(batch)))
            memory |= {each: max(most, peak_memory(each.pid)) for each, most in memory.items() if each.poll() is None}
            time.sleep(0.02)
        codes, seconds = (collecting.returncode, submitting.wait()), time.monotonic() - begin
        peak = int(farm.redis.info("memory")["used_memory_peak"])
        left = farm.redis.memory_usage(wire.handed_key(batch)) or 0
        with out.open("rb") as file:
            ids = [orjson.loads(line)["custom_id"] for line in file]
    submit_mb, collect_mb = (each / 2**20 for each in memory.values())
    text = (
        f"{len(set(ids)):,} results in {seconds:,.0f} s; Redis at most {peak / 2**20:,.0f} MB and {waiting:,} results, "
        f"then {left / 2**10:,.0f} KB; submit {submit_mb:,.0f} MB, collect {collect_mb:,.0f} MB"
    )
    complete = codes == (0, 0) and len(ids) == len(set(ids)) == rows
    small = peak < MOST_REDIS and waiting < MOST_WAITING and max(memory.values()) < MOST_CLIENT
    return Figure(text, complete and small and seconds < MOST_SECONDS)
