"""Others on the same Redis: RQ's own tools, and producers and workers of another version of the wire."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import orjson
from rq import Queue
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job

from draftmill.producer.queue import batches, wire
from tests.farm.farm import ROOT, Farm
from tests.farm.figure import Figure
from tests.worker.run_worker import PAIR


def rq_buttons(full: bool) -> Figure:
    """The buttons of RQ's dashboard while workers work: some jobs of one batch are cancelled and deleted, the queues of
    two more are emptied and deleted.
    """
    jobs = 1_002 if full else 90
    each = jobs // 3
    with Farm(rows=4, round_seconds=0.01, lease=1) as farm:
        for name in ("picked", "emptied", "deleted"):
            farm.submit(each, batch=name, tokens=4)
        pids = [farm.start(), farm.start()]
        farm.wait(lambda: farm.status("deleted").done > 2, 20)
        for n in range(0, each, 2):
            with suppress(NoSuchJobError, InvalidJobOperation):
                job = Job.fetch(wire.job_id("picked", f"r-{n}"), farm.redis, wire.JsonSerializer)
                job.delete() if n % 4 else job.cancel()
        _queue(farm, "emptied").empty()
        _queue(farm, "deleted").delete()
        farm.wait(lambda: all(state.complete for state in batches.list_batches(farm.redis)), 60)
        accounts = {name: farm.account(each, batch=name, seconds=1) for name in ("picked", "emptied", "deleted")}
        stopped = sum(
            orjson.loads(result.line)["error"] is not None
            for name in accounts
            for result in batches.results(farm.redis, name)
        )
        ended = sum(farm.status(name).ended for name in accounts)
        alive = sum(farm.alive(pid) for pid in pids)
    wrong = sum(account.duplicated + account.stuck for account in accounts.values())
    lost = sum(account.lost for account in accounts.values())
    text = f"{ended} of {3 * each} lines have one outcome, {stopped} of them cancelled; {wrong} duplicated or stuck"
    return Figure(text, (ended, wrong, lost, alive) == (3 * each, 0, stopped, 2) and stopped > 0)


def _queue(farm: Farm, batch: str) -> Queue:
    return Queue(wire.queue_name(PAIR, batch), connection=farm.redis, serializer=wire.JsonSerializer)


def wires(full: bool) -> Figure:
    """Two versions on one Redis. First only producers are of the next one, then only workers, then all are mixed: the
    jobs of each wait for workers of their own, and lose nothing.
    """
    lines = 2_000 if full else 60
    with Farm(rows=4, round_seconds=0.002, lease=2) as farm:
        following = _next_version(farm.folder)
        source = farm.folder / "in.jsonl"
        source.write_text("".join(f'{{"id": "r-{n}", "prompt": "say {n}", "max_tokens": 4}}\n' for n in range(lines)))
        now, later = (_submit(farm, source, version, "first") for version in ({}, following))
        farm.start()
        farm.wait(lambda: farm.status(now).complete, 60)
        time.sleep(0.5)
        untouched = farm.status(later).ended
        farm.work_in(following)
        farm.start()
        farm.wait(lambda: farm.status(later).complete, 60)
        accounts = [farm.account(lines, batch) for batch in (now, later)]
        for pid in list(farm.workers):
            farm.kill(pid)
        mixed = [_submit(farm, source, version, "second") for version in (following, {})]
        farm.start()
        farm.wait(lambda: farm.status(mixed[0]).complete, 60)
        time.sleep(0.5)
        untouched += farm.status(mixed[1]).ended
        farm.work_in({})
        pids = [farm.start(), farm.start()]
        farm.wait(lambda: farm.status(mixed[1]).ended > lines // 4, 30)
        farm.kill(pids[0])
        farm.wait(lambda: farm.status(mixed[1]).complete, 60)
        accounts += [farm.account(lines, batch) for batch in mixed]
        collected = [_collect(farm, batch, {}) for batch in mixed]
    clean = all(account.clean for account in accounts) and collected == [lines, lines]
    text = f"{'; '.join(map(str, accounts))}; {untouched} jobs were taken by workers of the other version"
    return Figure(text, clean and not untouched and len({now, later, *mixed}) == 4)


def _next_version(folder: Path) -> dict[str, str]:
    """Makes a copy of the package whose wire is the next one; returns what lets Python import it."""
    package = folder / "next" / "draftmill"
    package.mkdir(parents=True)
    for path in ROOT.glob("*.py"):
        shutil.copy2(path, package)
    for name in ("kernels", "engine", "producer", "worker"):
        shutil.copytree(ROOT / name, package / name, ignore=shutil.ignore_patterns("drafts"))
    contract = package / "producer" / "queue" / "wire.py"
    text, count = re.subn(rf"(?m)^WIRE = {wire.WIRE}$", f"WIRE = {wire.WIRE + 1}", contract.read_text("utf-8"))
    assert count == 1
    contract.write_text(text, "utf-8")
    return {"PYTHONPATH": str(package.parent)}


def _draftmill(farm: Farm, environment: dict[str, str], *arguments: str) -> str:
    known = os.environ | {"REDIS_URL": farm.server.url, "DRAFTMILL_HOME": str(farm.folder)} | environment
    command = [sys.executable, "-m", "draftmill", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _submit(farm: Farm, source: Path, environment: dict[str, str], slot: str) -> str:
    """Submits the file by the command line of one version; returns the batch."""
    version = "next" if environment else "this"
    return _draftmill(farm, environment, "submit", str(source), "--pair", PAIR, "--slot", f"{slot} {version}")


def _collect(farm: Farm, batch: str, environment: dict[str, str]) -> int:
    """The lines that this version's command line writes of a batch."""
    out = farm.folder / f"{batch}.jsonl"
    _draftmill(farm, environment, "collect", batch, "-o", str(out))
    return len({orjson.loads(line)["custom_id"] for line in out.read_bytes().splitlines()})
