"""A scheduler: takes slots, and works on each in a thread until it is submitted, or its results are written.

A slot is held by a lease as long as it is open; should this scheduler die, another takes it over and does the same
work again: the batch is the same one.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from uuid import uuid4

import redis as redis_py

from ..client.patience import Patience
from ..queue import batches
from ..queue import schedules as store
from ..queue.errors import DONE, FAILED_ITEMS, redis_trouble
from ..queue.schedules import Ended, Slot
from . import entries
from .entries import Schedules
from .schedule import Check, Schedule
from .work import Again, Plan, Stopped, Waiting, Work

WORKING = 4
"""Slots that one scheduler works on at once; those that wait for workers are no work."""
LONG = 16
"""Slots whose datasets do not fit into Redis, and that are followed beside these."""
BUSY_SECONDS, IDLE_SECONDS = 0.1, 1.0
"""Between two looks while there is work, and while there is none."""
AWAY_SECONDS = 5.0
"""Between two tries when Redis refuses something, or is away for very long."""
END_SECONDS = 5.0
"""How long work may take to stop. After that it ends with the process, as by a kill."""

log = logging.getLogger("draftmill.cron")


@dataclass
class Task:
    """An open slot: the work that is done on it, or the batch that it waits for."""

    schedule: Schedule
    batch: str = ""
    work: Work | None = None


@dataclass
class Scheduler:
    """Runs the schedules of one Redis, their paths meant in this process's folder, until `stop` is set.

    `check` is for the arguments of each, `plan` reads the dataset that they name. An OUT that is a URL must be below
    one of `out_urls`.
    """

    redis: redis_py.Redis
    lease: float
    check: Check
    plan: Plan
    out_urls: tuple[str, ...] = ()
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
        self._patience = Patience(self.redis, log.warning, sleep=self._pause)
        self._tasks: dict[Slot, Task] = {}
        self._ended: dict[Slot, Ended] = {}
        self._unusable: dict[str, str] = {}
        self._asked = 0.0

    def run(self) -> bool:
        """Looks and works until `stop`; False if that left slots open, for another scheduler to go on with."""
        while not self.stop.is_set():
            try:
                pause = self._patience(self._look)
            except redis_py.RedisError as error:
                log.warning("%s; trying again", redis_trouble(error))
                pause = AWAY_SECONDS
            except Stopped:
                break
            self.stop.wait(pause)
        return self._give_up()

    def _look(self) -> float:
        """One round of all there is to do; returns the seconds until the next."""
        for slot, task in list(self._tasks.items()):
            if task.work and not task.work.is_alive():
                self._finish(slot, task, task.work)
        self._ask_for_batches()
        schedules = entries.read(self._patience.redis, self.check, self.out_urls)
        self._complain(schedules)
        room = WORKING - self._busy
        ended = dict(self._ended)
        due = schedules.due if room else []
        looked = store.look(self._patience.redis, self.name, self.lease, room, due, self._tasks, ended)
        for slot in ended:
            del self._ended[slot]
        for slot in looked.lost:
            self._drop(slot)
        for slot, batch in looked.taken.items():
            if entry := schedules.entries.get(slot.schedule):
                self._tasks[slot] = Task(entry.schedule, batch)
                self._begin(slot, self._tasks[slot])
        if looked.taken:
            return 0
        first = min((entry.next for entry in schedules.entries.values()), default=None)
        until_due = IDLE_SECONDS if first is None else max(0, first - schedules.now) / 1000
        return min(BUSY_SECONDS if self._busy else IDLE_SECONDS, max(until_due, BUSY_SECONDS / 2))

    @property
    def _busy(self) -> int:
        work = [task.work for task in self._tasks.values() if task.work]
        return len(work) - min(LONG, sum(each.is_long for each in work))

    def _begin(self, slot: Slot, task: Task) -> None:
        task.work = Work(self.redis, self.plan, slot, task.schedule, task.batch)
        try:
            task.work.start()
        except RuntimeError as error:  # the system has no thread left
            self._try_again(slot, str(error))

    def _finish(self, slot: Slot, task: Task, work: Work) -> None:
        """What the end of some work means for its slot."""
        task.work = None
        match work.result:
            case Ended() as ended:
                del self._tasks[slot]
                self._ended[slot] = ended
                level = logging.INFO if ended.code in (DONE, FAILED_ITEMS) else logging.WARNING
                log.log(level, "%s: %s", slot, ended.said)
            case Waiting(batch):
                task.batch = batch
                log.info("%s: submitted as %s", slot, batch)
            case Again(reason):
                self._try_again(slot, reason)

    def _ask_for_batches(self) -> None:
        """Goes on with slots whose batch is complete, or lacks lines that Redis lost, or is gone."""
        waiting = {task.batch: slot for slot, task in self._tasks.items() if task.work is None}
        now = time.monotonic()
        if not waiting or now - self._asked < IDLE_SECONDS:
            return
        self._asked = now
        states = batches.statuses(self._patience.redis, list(waiting))
        running = {state.id for state in states if not state.complete and state.submitted >= state.total}
        for batch, slot in waiting.items():
            if batch not in running and self._busy < WORKING:
                self._begin(slot, self._tasks[slot])

    def _try_again(self, slot: Slot, reason: str) -> None:
        log.warning("%s: to be tried again: %s", slot, reason)
        self._drop(slot)  # its lease runs out, and somebody takes it

    def _drop(self, slot: Slot) -> None:
        task = self._tasks.pop(slot, None)
        if task and task.work:
            task.work.stop()

    def _complain(self, schedules: Schedules) -> None:
        for name, reason in schedules.unusable.items():
            if self._unusable.get(name) != reason:
                log.warning("%s cannot run: %s", name, reason)
        self._unusable = schedules.unusable

    def _give_up(self) -> bool:
        """Stops all work, and lets others have the slots that are open."""
        working = [task.work for task in self._tasks.values() if task.work]
        for work in working:
            work.stop()
        deadline = time.monotonic() + END_SECONDS
        for work in working:
            work.join(max(0.0, deadline - time.monotonic()))
        for slot, task in list(self._tasks.items()):
            if task.work and isinstance(task.work.result, Ended):
                self._finish(slot, task, task.work)
        held = list(self._tasks)
        try:
            store.look(self._patience.redis, self.name, 0, 0, held=held, ended=self._ended)
        except redis_py.RedisError:
            log.warning("Redis is away; others go on with open slots when their leases have run out")
        return not held

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Stopped
