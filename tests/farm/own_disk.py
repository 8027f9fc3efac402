"""The disk of the workers' own machine is full: they cannot keep results on it, and work on."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.farm.farm import Farm
from tests.farm.figure import Figure

OPTIONS = "size=64k,nr_inodes=4"
"""Room for the folder, the files of two workers, and the one that fills the rest."""


def own_disk(full: bool) -> Figure:
    """Two workers are at work when their disk fills up, a third starts on it; meanwhile Redis goes and comes back."""
    jobs = 4_000 if full else 400
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as disk:
        mount = ["mount", "-t", "tmpfs", "-o", OPTIONS, "draftmill", disk]
        if subprocess.run(mount, capture_output=True).returncode:
            return Figure("not run: mounting a small file system needs Linux and root", True)
        try:
            with Farm(rows=4, round_seconds=0.01) as farm:
                farm.submit(jobs)
                pids = [farm.start(spool=disk), farm.start(spool=disk)]
                farm.wait(lambda: farm.status().done > jobs // 5, 30)
                ballast = Path(disk, "ballast")
                with suppress(OSError), ballast.open("wb", buffering=0) as file:
                    while True:
                        file.write(b"\0" * 4096)
                pids.append(farm.start(spool=disk))
                farm.wait(lambda: farm.status().done > 2 * jobs // 5, 60)
                for _ in range(3):
                    farm.server.kill()
                    farm.server.start()
                farm.wait(lambda: farm.status().done > 4 * jobs // 5, 60)
                ballast.unlink()
                account = farm.account(jobs)
                alive = sum(farm.alive(pid) for pid in pids)
                said = farm.said().count("cannot write to")
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)  # what still has a file there may end later
    text = f"{account}; {alive} of 3 workers still the same process, which said {said} times what is wrong"
    return Figure(text, account.clean and alive == 3 and 3 <= said <= 20)
