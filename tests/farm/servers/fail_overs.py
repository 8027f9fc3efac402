"""A primary that dies under load, again and again, while Sentinels put its replica in its place."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

import orjson

from draftmill.producer.queue.connect import connect
from tests.farm.farm import Farm
from tests.farm.figure import Figure
from tests.farm.files.outputs import DRAFTMILL, ROOT, written
from tests.sentinels import watched
from tests.worker.run_worker import PAIR


def fail_overs(full: bool) -> Figure:
    """Submitted, generated and collected through Sentinels; submitted again in the end, for what a replica lacked."""
    lines, times, workers = (5_000, 10, 4) if full else (300, 1, 2)
    with watched() as both, Farm(rows=4, round_seconds=0.03, lease=3) as farm, farm.log.open("ab") as log:
        source, out = farm.folder / "in.jsonl", farm.folder / "out.jsonl"
        source.write_text("".join(f'{{"id": "r-{n}", "prompt": "a", "max_tokens": 6}}\n' for n in range(lines)))
        farm.redis = connect(both.url("admin"))
        environment = os.environ | {"DRAFTMILL_HOME": str(farm.folder)}
        said: Any = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": log}
        submit = [*DRAFTMILL, "submit", str(source), "--pair", PAIR, "--redis-url", both.url("producer")]
        batch = subprocess.run(submit, **said).stdout.decode().strip()
        collect = [*DRAFTMILL, "collect", batch, "-o", str(out), "--follow", "--redis-url", both.url("collector")]
        collecting = subprocess.Popen(collect, **said)
        pids = [farm.start(url=both.url("worker")) for _ in range(workers)]
        in_work = 0
        for number in range(times):
            target = lines * (number + 1) // (times + 2)
            farm.wait(lambda target=target: written(out) >= target, 120)
            both.fail_over()
            in_work += not farm.status(batch).complete
        again = subprocess.run(submit, **said).returncode
        farm.wait(lambda: collecting.poll() is not None, 120)
        code = collecting.poll()
        collecting.kill()
        collecting.communicate()
        ids = [orjson.loads(line)["custom_id"] for line in out.read_bytes().splitlines()]
        alive = sum(farm.alive(pid) for pid in pids)
        time.sleep(farm.settings.lease)
        waiting = farm.status(batch).open
    lost, twice = lines - len(set(ids)), len(ids) - len(set(ids))
    text = (
        f"{times} fail-overs, {in_work} of them under load; {lost} lost, {twice} twice of {lines:,} in OUT; {waiting} "
        f"stuck; {alive} of {workers} workers still the same process"
    )
    good = (lost, twice, waiting, again, code) == (0, 0, 0, 0, 0) and alive == workers and in_work == times
    return Figure(text, good)
