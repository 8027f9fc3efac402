"""A worker on this machine for the length of one `run`: a process of its own, watched, and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import redis as redis_py

from ..queue import batches
from ..queue.errors import BUG, NO_REDIS, USAGE, UserError, explain_file
from ..queue.paths import data_dir
from ..queue.wire import RESULT_TTL

LEASE_SECONDS = 20
"""Should the worker crash, the next run waits no longer than this for the jobs that it held."""
QUICK_SECONDS = 15.0
"""How long a worker that was told to stop may take to hand its jobs back."""


class LocalWorker:
    """A context manager around `draftmill worker`; its own session keeps the terminal's Ctrl-C from it."""

    def __init__(
        self, redis: redis_py.Redis, redis_url: str, pair: str, batch: str, options: Sequence[str] = ()
    ) -> None:
        self.pair = pair
        self._others = self._names(redis)
        self.log = data_dir() / "logs" / f"{batch}.log"
        command = [sys.executable, "-m", "draftmill", "worker", "--pair", pair, "--lease", str(LEASE_SECONDS)]
        command += [*options, "--until-closed"]  # its input, so that it ends with this process, even after a kill -9
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            _drop_old_logs(self.log.parent)
            self._start = self.log.stat().st_size if self.log.exists() else 0
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=os.environ | {"REDIS_URL": redis_url},
                )
        except OSError as error:
            raise UserError(explain_file(error, "cannot write the worker's log", self.log)) from error

    def __enter__(self) -> LocalWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def is_ready(self, redis: redis_py.Redis) -> bool:
        """Whether the worker has loaded its model and reports."""
        return not self._names(redis) <= self._others

    def check(self) -> None:
        """Raises UserError, with what the worker said last, if it has ended."""
        code = self.process.poll()
        if code is None:
            return
        said = self.said()
        if code in (USAGE, NO_REDIS) and said:
            raise UserError(said[-1].removeprefix("Error: "), code)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        last = f": {' | '.join(said[-3:])}" if said else ""
        raise UserError(
            f"the worker ended with {how}{last} (log: {self.log}); finished lines are kept, the same command goes on",
            BUG,
        )

    def stop(self) -> None:
        """Stops the worker, which hands back its unfinished jobs first."""
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(QUICK_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _names(self, redis: redis_py.Redis) -> set[str]:
        return {report["name"] for report in batches.workers(redis) if report.get("pair") == self.pair}

    def said(self) -> list[str]:
        """The lines that the worker has written so far."""
        with Path(self.log).open("rb") as log:
            log.seek(self._start)
            return [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]


def _drop_old_logs(folder: Path) -> None:
    """Each batch has a log of its own; of those that are over nobody reads it for long."""
    for log in folder.glob("*.log"):
        with suppress(FileNotFoundError):  # another command drops it, too
            if time.time() - log.stat().st_mtime > RESULT_TTL:
                log.unlink()
