"""A Redis that dies, fills up, turns read-only, forgets its scripts or goes silent: workers wait, nothing is lost."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.farm.farm import Farm
from tests.farm.figure import Figure
from tests.farm.proxy import Proxy


def redis_kills(full: bool) -> Figure:
    """kill -9 of the server, ten times, and one outage of 60 s; the workers are the same processes all along."""
    jobs, count, outage = (8_000, 10, 60) if full else (400, 2, 2)
    dice = random.Random(3)
    with Farm(rows=4, round_seconds=0.01, lease=3) as farm:
        farm.submit(jobs)
        pids = [farm.start() for _ in range(4 if full else 2)]
        for number in range(count + 1):
            target = jobs * (number + 1) // (count + 4)
            farm.wait(lambda target=target: farm.status().ended >= target, 60)
            farm.server.kill()
            time.sleep(outage if number == count else 0.2 + 0.8 * dice.random())
            farm.server.start()
        in_work = not farm.status().complete
        account = farm.account(jobs, seconds=120)
        alive = sum(farm.alive(pid) for pid in pids)
    text = f"{count} kills and {outage} s away; {account}; {alive} of {len(pids)} workers still the same process"
    return Figure(text, account.clean and alive == len(pids) and in_work)


def long_outage(full: bool) -> Figure:
    """The server is away for three leases while workers work on: none of their leases is taken when it is back."""
    jobs, lease, count = (4_000, 4, 3) if full else (300, 1, 1)
    with Farm(rows=4, round_seconds=0.02, lease=lease) as farm:
        farm.submit(jobs)
        pids = [farm.start() for _ in range(4 if full else 2)]
        for number in range(count):
            target = jobs * (number + 1) // (count + 2)
            farm.wait(lambda target=target: farm.status().ended >= target, 60)
            farm.server.kill()
            time.sleep(3 * lease)
            farm.server.start()
        in_work = not farm.status().complete
        account = farm.account(jobs, seconds=120)
        alive = sum(farm.alive(pid) for pid in pids)
        lost = sum(map(int, re.findall(r"took back (\d+) expired", farm.said())))
    text = f"{count} times {3 * lease} s away; {lost} leases lost; {account}; {alive} of {len(pids)} workers alive"
    return Figure(text, account.clean and lost == 0 and alive == len(pids) and in_work)


def _through(farm: Farm, full: bool, hurt: Callable[[], None], heal: Callable[[], object]) -> Figure:
    """Runs a batch with a fault in the middle: while it lasts nothing is recorded, afterwards all is."""
    jobs = 2_000 if full else 400
    farm.submit(jobs)
    pids = [farm.start(), farm.start()]
    farm.wait(lambda: farm.status().done > jobs // 5, 30)
    hurt()
    time.sleep(1)
    before = farm.status().done
    time.sleep(15 if full else 1)
    paused = farm.status().done == before
    heal()
    account = farm.account(jobs)
    alive = sum(farm.alive(pid) for pid in pids)
    text = f"{account}; {alive} of {len(pids)} workers still the same process"
    return Figure(text, account.clean and alive == len(pids) and paused)


def full_memory(full: bool) -> Figure:
    """`maxmemory` is reached, and raised later."""
    with Farm(rows=4, round_seconds=0.01) as farm:

        def hurt() -> None:
            used: Any = farm.redis.info("memory")
            farm.redis.config_set("maxmemory", used["used_memory"] // 2)

        return _through(farm, full, hurt, lambda: farm.redis.config_set("maxmemory", 0))


def read_only(full: bool) -> Figure:
    """The server becomes a replica of a primary that is gone, and is promoted later."""
    with Farm(rows=4, round_seconds=0.01) as farm:

        def hurt() -> None:
            farm.redis.replicaof("127.0.0.1", "1")

        return _through(farm, full, hurt, lambda: farm.redis.replicaof("NO", "ONE"))


def full_disk(full: bool) -> Figure:
    """The append-only file meets a full disk (MISCONF), which is freed later."""
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as disk:
        mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "draftmill", disk]
        if subprocess.run(mount, capture_output=True).returncode:
            return Figure("not run: mounting a small file system needs Linux and root", True)
        try:
            with Farm("--dir", disk, rows=4, round_seconds=0.01) as farm:
                ballast = Path(disk, "ballast")

                def hurt() -> None:
                    with suppress(OSError), ballast.open("wb", buffering=0) as file:
                        while True:
                            file.write(b"\0" * 4096)

                return _through(farm, full, hurt, ballast.unlink)
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)  # what still has a file there may end later


def script_flush(full: bool) -> Figure:
    """SCRIPT FLUSH, again and again."""
    jobs = 4_000 if full else 400
    with Farm(rows=4, round_seconds=0.005) as farm:
        farm.submit(jobs)
        pids = [farm.start(), farm.start()]
        flushes = 0
        while not farm.status().complete and flushes < 1000:
            farm.redis.script_flush()
            flushes += 1
            time.sleep(0.02)
        account = farm.account(jobs)
        alive = sum(farm.alive(pid) for pid in pids)
    return Figure(f"{flushes} flushes; {account}", account.clean and alive == 2)


def half_open(full: bool) -> Figure:
    """Connections go dead without being closed, as behind a router that was switched off."""
    jobs, silence = (2_000, 20) if full else (400, 4)
    with Farm(rows=4, round_seconds=0.01, lease=3) as farm:
        proxy = Proxy(farm.server.socket)
        farm.submit(jobs)
        pids = [farm.start(url=f"redis://127.0.0.1:{proxy.port}", timeout=2) for _ in range(2)]
        farm.wait(lambda: farm.status().done > jobs // 5, 30)
        proxy.dead = True
        time.sleep(silence)
        proxy.dead = False
        account = farm.account(jobs)
        alive = sum(farm.alive(pid) for pid in pids)
        proxy.close()
    return Figure(f"{silence} s of silence; {account}; {alive} of 2 workers alive", account.clean and alive == 2)


def frozen(full: bool) -> Figure:
    """The server is stopped (SIGSTOP) for longer than the leases, and answers late what it was asked before."""
    jobs, seconds = (2_000, 15) if full else (400, 3)
    with Farm(rows=4, round_seconds=0.01, lease=2) as farm:
        farm.submit(jobs)
        pids = [farm.start(timeout=1), farm.start(timeout=1)]
        farm.wait(lambda: farm.status().done > jobs // 5, 30)
        assert farm.server.process
        farm.server.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        farm.server.process.send_signal(signal.SIGCONT)
        farm.wait(lambda: bool(farm.redis.ping()), 10)
        account = farm.account(jobs)
        alive = sum(farm.alive(pid) for pid in pids)
    return Figure(f"{seconds} s frozen; {account}; {alive} of 2 workers alive", account.clean and alive == 2)
