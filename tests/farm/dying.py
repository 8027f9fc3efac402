"""Workers that die, sleep or meet poison: nothing is lost, nothing recorded twice, nothing stuck."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.leases import JobQueue
from tests.farm.crash import STEPS
from tests.farm.farm import ROOT, Farm
from tests.farm.figure import Figure
from tests.worker.run_worker import PAIR

CLEANER = """
import sys, time, redis
from rq.registry import StartedJobRegistry
connection = redis.Redis.from_url(sys.argv[1])
while True:
    try:
        StartedJobRegistry(sys.argv[2], connection=connection).cleanup()
    except redis.RedisError:
        pass
    time.sleep(float(sys.argv[3]))
"""
INFO = 'while true; do "$0" info -u "$1"; sleep 0.05; done'
RQ = Path(sys.executable).with_name("rq")


class Victims:
    """Measures how long the jobs of killed workers stay leased to the dead."""

    def __init__(self, farm: Farm) -> None:
        self.farm = farm
        self.slowest = 0.0
        self._open: list[tuple[float, str]] = []

    def of(self, worker: str) -> None:
        """Notes what a worker that has just died was running."""
        for job, token in JobQueue(self.farm.redis, worker, PAIR, 0).leases():
            self._open.append((time.monotonic(), f"{job}:{token}"))

    def look(self) -> bool:
        """Strikes out the jobs that were taken back; whether others are left."""
        now = time.monotonic()
        still = []
        for since, lease in self._open:
            if self.farm.redis.zscore(wire.leased_key(wire.queue_name(PAIR, "b")), lease) is not None:
                still.append((since, lease))
            self.slowest = max(self.slowest, now - since)
        self._open = still
        return bool(still)


def kills(full: bool) -> Figure:
    """kill -9 of random workers while they work."""
    return _kills(*((4, 20_000, 100) if full else (2, 400, 6)))


def kills_among_cleaners(full: bool) -> Figure:
    """The same, while three processes loop `rq info` and RQ's own clean-up."""
    return _kills(*((4, 20_000, 100) if full else (2, 300, 3)), cleaners=3)


def _kills(workers: int, jobs: int, count: int, cleaners: int = 0) -> Figure:
    dice = random.Random(count + cleaners)
    with Farm(rows=2, round_seconds=0.005, lease=2) as farm, ExitStack() as stack:
        queue = wire.queue_name(PAIR, "b")
        pause = "0" if jobs > 1_000 else "0.01"  # beside other tests, a hundred times a second
        commands = [[sys.executable, "-c", CLEANER, farm.server.url, queue, pause]] * (cleaners - 1)
        commands += [["sh", "-c", INFO, str(RQ), farm.server.url]] * min(1, cleaners)
        for command in commands:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            stack.callback(_end, process)
        farm.submit(jobs)
        for _ in range(workers):
            farm.start()
        victims, killed, next_line, last = Victims(farm), 0, 0, time.monotonic()
        farm.wait(lambda: farm.status().done > 0, 20)
        while killed < count and not (status := farm.status()).complete:
            # Kills are spread over the batch: one each time another share of it is done.
            if status.ended >= next_line:
                names = {int(report["pid"]): report["name"] for report in _reports(farm)}
                pid = dice.choice(farm.workers)
                farm.kill(pid)
                if pid in names:
                    victims.of(names[pid])
                farm.start()
                killed, last = killed + 1, time.monotonic()
                next_line = jobs * killed // (count + 1)
            victims.look()
            time.sleep(0.02 + 0.05 * dice.random())
        while victims.look() and time.monotonic() - last < 30:
            time.sleep(0.02)
        account = farm.account(jobs, seconds=120)
    bound = 2 + 1.5  # the lease, and the longest time between two reaps
    text = f"{killed} kills; {account}; slowest recovery {victims.slowest:.1f} s of {bound}"
    return Figure(text, account.clean and killed == count and victims.slowest <= bound)


def _reports(farm: Farm) -> list[dict[str, str]]:
    """Name and process of each live worker."""
    found = []
    for report in batches.workers(farm.redis):
        pid: Any = farm.redis.hget(f"rq:worker:{report['name']}", "pid")
        if pid:
            found.append({"name": report["name"], "pid": pid.decode()})
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def crashes(full: bool) -> Figure:
    """A worker kills itself at each boundary between two steps, beside healthy workers.

    The next one starts when the jobs of the last are back: by chance a job may share the end of two workers, but
    dozens of crashes within one lease would make poison of honest jobs, as they should.
    """
    each, healthy, lease = (50, 3, 0.8) if full else (1, 1, 0.8)
    dice = random.Random(7)
    with Farm(rows=2, round_seconds=0.005, lease=lease) as farm:
        jobs = 1_000
        farm.submit(jobs)
        for _ in range(healthy):
            farm.start()
        counts = dict.fromkeys(STEPS, 0)
        for step in [step for step in STEPS for _ in range(each)]:
            if (status := farm.status()).total - status.ended < 500:  # never run dry
                farm.submit(jobs + 500, after=jobs)
                jobs += 500
            pid = farm.start(crash=step, crash_after=dice.randint(1, 3))
            if farm.wait(lambda pid=pid: not farm.alive(pid), 20):
                counts[step] += 1
                farm.workers.remove(pid)
            time.sleep(2 * lease if full else 0)
        account = farm.account(jobs, seconds=300)
    done = ", ".join(f"{count} at {step}" for step, count in counts.items())
    return Figure(f"{done}; {account}", account.clean and set(counts.values()) == {each})


def sleeps(full: bool) -> Figure:
    """SIGSTOP for two leases, as a Mac that sleeps."""
    count, lease = (20, 1.5) if full else (1, 1.0)
    with Farm(rows=4, round_seconds=0.01, lease=lease) as farm:
        jobs = 20_000 if full else 400
        farm.submit(jobs)
        pids = [farm.start(), farm.start()]
        farm.wait(lambda: farm.status().running > 4, 20)
        for number in range(count):
            pid = pids[number % 2]
            farm.signal(pid, signal.SIGSTOP)
            time.sleep(2 * lease)
            farm.signal(pid, signal.SIGCONT)
            time.sleep(0.3)
        asleep_in_work = not farm.status().complete
        account = farm.account(jobs, seconds=240)
    return Figure(f"{count} sleeps; {account}", account.clean and asleep_in_work)


def poison(full: bool) -> Figure:
    """Jobs that kill every worker that runs them; dead workers are started again."""
    jobs, bad = (1000, 5) if full else (60, 1)
    every = jobs // bad
    with Farm(rows=2, round_seconds=0.005, lease=1) as farm:
        farm.submit(jobs, prompt=lambda n: "poison" if n % every == every // 2 else "say it")
        died = 0
        for _ in range(2):
            farm.start()
        deadline = time.monotonic() + 200
        while not farm.status().complete and time.monotonic() < deadline:
            for pid in [pid for pid in farm.workers if not farm.alive(pid)]:
                farm.workers.remove(pid)
                died += 1
                farm.start()
            time.sleep(0.05)
        status = farm.status()
        codes = [line for line in batches.results(farm.redis, "b") if b'"lost_leases"' in line.line]
    holds = (len(codes), status.done) == (bad, jobs - bad)
    return Figure(f"{len(codes)} failed as poison, {status.done:,} done, {died} workers died", holds)


def gpu_aborts(full: bool) -> Figure:
    """A worker below a parent, whose GPU gives up: half of the times it dies of it, half of the times it says so."""
    aborts, jobs = (10, 2_000) if full else (2, 200)
    with Farm(rows=4, round_seconds=0.005, lease=60) as farm:
        settings = orjson.dumps(asdict(farm.settings)).decode()
        rounds = ",".join(["100"] * aborts)  # a life ends about 65 jobs
        farm.submit(jobs)
        slowest, idle = 0.0, time.monotonic()
        command = [sys.executable, "-m", "tests.worker.mac.run_parent", settings, rounds]
        silent, log = subprocess.DEVNULL, farm.log.open("ab")
        with log, subprocess.Popen(command, cwd=ROOT, stdout=silent, stderr=log) as parent:
            deadline = time.monotonic() + 200
            while not (status := farm.status()).complete and time.monotonic() < deadline:
                now = time.monotonic()
                slowest, idle = (max(slowest, now - idle), now) if status.running else (slowest, idle)
                time.sleep(0.01)
            account = farm.account(jobs)
            parent.terminate()
        said = farm.said().count("without blame")
        leases: list[Any] = [farm.redis.hget(key, "leases") for key in farm.redis.scan_iter("rq:job:*")]
        blamed = sum(int(each.split()[0]) > 1 for each in leases if each)
    text = f"{said} aborts; {account}, {blamed} blamed; slowest recovery {slowest:.1f} s"
    return Figure(text, account.clean and said == aborts and blamed == 0 and slowest < 10)


def clocks(full: bool) -> Figure:
    """Workers whose clocks are 120 s ahead, 120 s behind, and jump between the two; another, behind, dies."""
    if sys.platform != "linux":
        return Figure("not run: shifting a process's clock needs LD_PRELOAD", True)
    jobs = 4_000 if full else 300
    with Farm(rows=4, round_seconds=0.005, lease=2) as farm:
        library = farm.folder / "clock.so"
        source = Path(__file__).with_name("shifted_clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        farm.shift_clocks(library, 120)
        farm.start()
        farm.work_in({"LD_PRELOAD": str(library), "SHIFTED_BY": "120", "JUMPS_EVERY": "1"})
        farm.start()
        farm.shift_clocks(library, -120)
        farm.start()
        victim = farm.start()
        assert farm.wait(lambda: farm.redis.scard("rq:workers") == 4, 20)  # else one could do all the work
        farm.submit(jobs)
        assert farm.wait(lambda: farm.status().done > jobs // 4, 60)
        workers: Any = farm.redis.smembers("rq:workers")
        beats: list[Any] = [farm.redis.hget(key, "last_heartbeat") for key in workers]
        minutes = {beat.decode()[:16] for beat in beats if beat}
        farm.kill(victim)
        account = farm.account(jobs)
    return Figure(f"clocks +120 s, -120 s and jumping, one kill; {account}", account.clean and len(minutes) > 1)
