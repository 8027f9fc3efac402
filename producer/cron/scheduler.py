"""A scheduler: takes slots, runs `draftmill submit` for each, and `draftmill collect` where results are to be written.

Each command is a process of its own, so a slow one holds nothing up. A slot is held by a lease as long as it is open;
should this scheduler die, another takes it over and runs the same commands again: the batch is the same one.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from uuid import uuid4

import orjson
import redis as redis_py

from ..queue import batches
from ..queue import schedules as store
from ..queue.errors import BUG, DONE, FAILED_ITEMS, USAGE, UserError, explain_file, redis_trouble
from ..queue.schedules import Ended, Slot
from . import entries
from .entries import Schedules
from .schedule import Check, Schedule

PROCESSES = 4
"""Commands that one scheduler runs at once."""
BUSY_SECONDS, IDLE_SECONDS = 0.1, 1.0
"""Between two looks while a command runs, and while none does."""
AWAY_SECONDS = 5.0
"""Between two tries while Redis is away."""
SAID_LINES = 5
"""Of what a command says, so many lines are logged."""
WORKED = (DONE, FAILED_ITEMS)
"""Exit codes of a command that did what it should, if with bad or failed lines."""
FINAL = (*WORKED, USAGE, BUG)
"""Exit codes after which a slot is not tried again."""

log = logging.getLogger("draftmill.cron")


@dataclass
class Task:
    """An open slot: the command that runs for it, or the batch that it waits for."""

    schedule: Schedule
    batch: str = ""
    command: Command | None = None
    collecting: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, the batch that it submitted, if it did, what it reported at last, and the
    remarks that it made on the way.
    """

    code: int
    batch: str
    said: str
    remarks: tuple[str, ...] = ()

    @property
    def worked(self) -> bool:
        return self.code in WORKED

    @classmethod
    def read(cls, code: int, out: Sequence[str], err: Sequence[str]) -> Outcome:
        """From an exit code and the last lines of both outputs, which may be empty whatever the code is."""
        worked = code in WORKED
        said = (out if worked else err)[-1:]
        return cls(code, _batch(said) if worked else "", "".join(said), tuple(err if worked else err[:-1]))


class Command:
    """A `draftmill` command in a process of its own, away from the terminal's Ctrl-C."""

    def __init__(self, arguments: Sequence[str], folder: Path, redis_url: str) -> None:
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 -- read at its end
        self.process = subprocess.Popen(
            [sys.executable, "-m", "draftmill", *arguments],
            cwd=folder,
            env=os.environ | {"REDIS_URL": redis_url},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )

    def outcome(self) -> Outcome | None:
        """How it ended; None while it runs."""
        code = self.process.poll()
        return None if code is None else Outcome.read(code, _tail(self._out), _tail(self._err))

    def stop(self) -> None:
        """Interrupts it and waits for its end."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Scheduler:
    """Runs the schedules of one Redis, their paths meant in `folder`, until `stop` is set.

    `check` is for the arguments of each.
    """

    redis: redis_py.Redis
    redis_url: str
    folder: Path
    lease: float
    check: Check
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
        self._tasks: dict[Slot, Task] = {}
        self._ended: dict[Slot, Ended] = {}
        self._unusable: dict[str, str] = {}

    def run(self) -> bool:
        """Looks and works until `stop`; False if that left slots open, for another scheduler to go on with."""
        while not self.stop.is_set():
            try:
                pause = self._look()
            except redis_py.RedisError as error:
                log.warning("%s; trying again", redis_trouble(error))
                pause = AWAY_SECONDS
            self.stop.wait(pause)
        return self._give_up()

    def _look(self) -> float:
        """One round of all there is to do; returns the seconds until the next."""
        for slot, task in list(self._tasks.items()):
            self._advance(slot, task)
        schedules = entries.read(self.redis, self.check)
        self._complain(schedules)
        room = PROCESSES - self._busy
        ended = dict(self._ended)
        due = schedules.due if room else []
        looked = store.look(self.redis, self.name, self.lease, room, due, self._tasks, ended)
        for slot in ended:
            del self._ended[slot]
        for slot in looked.lost:
            self._drop(slot)
        for slot, batch in looked.taken.items():
            if entry := schedules.entries.get(slot.schedule):
                self._tasks[slot] = Task(entry.schedule, batch)
                self._advance(slot, self._tasks[slot])
        if looked.taken:
            return 0
        first = min((entry.next for entry in schedules.entries.values()), default=None)
        until_due = IDLE_SECONDS if first is None else max(0, first - schedules.now) / 1000
        return min(BUSY_SECONDS if self._busy else IDLE_SECONDS, max(until_due, BUSY_SECONDS / 2))

    @property
    def _busy(self) -> int:
        return sum(task.command is not None for task in self._tasks.values())

    def _advance(self, slot: Slot, task: Task) -> None:
        """Takes an open slot as far as it goes now: submit, wait for the batch, collect, end."""
        try:
            if task.command is None and not task.batch:
                self._submit(slot, task)
            elif task.command is not None:
                self._finish(slot, task, task.command)
            elif self._busy < PROCESSES:
                self._collect_when_complete(slot, task)
        except UserError as error:
            self._end(slot, error.exit_code, error.message)

    def _submit(self, slot: Slot, task: Task) -> None:
        task.command = self._start("submit", "--json", "--slot", str(slot), *task.schedule.arguments)

    def _collect_when_complete(self, slot: Slot, task: Task) -> None:
        state = batches.status(self.redis, task.batch)
        if state is None:
            raise UserError(f"{task.batch} was forgotten before its results were written")
        if state.complete:
            out = task.schedule.out(slot.at)
            try:
                (self.folder / out).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(explain_file(error, "cannot write", out)) from error
            task.collecting = True
            task.command = self._start("collect", "-o", out, "--", task.batch)

    def _start(self, *arguments: str) -> Command:
        try:
            return Command(arguments, self.folder, self.redis_url)
        except OSError as error:
            raise UserError(explain_file(error, "cannot run in", self.folder)) from error

    def _finish(self, slot: Slot, task: Task, command: Command) -> None:
        """What the end of a command means for its slot."""
        outcome = command.outcome()
        if outcome is None:
            return
        task.command = None
        for remark in outcome.remarks:
            log.info("%s: %s", slot, remark)
        submits = not task.collecting
        if outcome.code not in FINAL or (submits and outcome.worked and not outcome.batch):
            log.warning("%s: to be tried again (exit code %d): %s", slot, outcome.code, outcome.said or "no word")
            self._drop(slot)  # its lease runs out, and somebody tries again
        elif submits and outcome.worked:
            task.batch = outcome.batch
            said = f"submitted as {task.batch}"
            if task.schedule.output:
                store.submitted(self.redis, slot, task.batch)
                log.info("%s: %s", slot, said)
            else:
                self._end(slot, outcome.code, said)
        else:
            self._end(slot, outcome.code, outcome.said or f"ended with exit code {outcome.code}")

    def _end(self, slot: Slot, code: int, said: str) -> None:
        task = self._tasks.pop(slot)
        self._ended[slot] = Ended(slot.at, code, said.removeprefix("Error: "), task.batch)
        log.log(logging.INFO if code in WORKED else logging.WARNING, "%s: %s", slot, said)

    def _drop(self, slot: Slot) -> None:
        task = self._tasks.pop(slot, None)
        if task and task.command:
            task.command.stop()

    def _complain(self, schedules: Schedules) -> None:
        for name, reason in schedules.unusable.items():
            if self._unusable.get(name) != reason:
                log.warning("%s cannot run: %s", name, reason)
        self._unusable = schedules.unusable

    def _give_up(self) -> bool:
        held = list(self._tasks)
        for slot in held:
            self._drop(slot)
        try:
            store.look(self.redis, self.name, 0, 0, held=held, ended=self._ended)
        except redis_py.RedisError:
            log.warning("Redis is away; others go on with open slots when their leases have run out")
        return not held


def _batch(said: Sequence[str]) -> str:
    """The batch in the report of `submit --json`; empty for another command's, or none."""
    try:
        report = orjson.loads("".join(said))
    except orjson.JSONDecodeError:
        return ""
    match report:
        case {"batch": str(batch)}:
            return batch
        case _:
            return ""


def _tail(file: IO[bytes]) -> list[str]:
    """The last lines of a command's output."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 4096))
    return [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()][-SAID_LINES:]
