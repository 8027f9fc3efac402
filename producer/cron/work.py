"""The work on one slot, in a thread: plan its dataset, submit it, follow it, write OUT."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import redis as redis_py

from ..client import shares
from ..client.collect import Collector, refuse_collected
from ..client.follower import Follower
from ..client.patience import Patience
from ..client.submission import Feed, NoRoom, Submission, fits
from ..input.remote import is_url
from ..output import places
from ..output.files import Busy
from ..output.output import Output
from ..output.places import Place, Unsent
from ..output.summary import count, where
from ..queue import batches
from ..queue import schedules as store
from ..queue.batches import BatchStatus
from ..queue.errors import DONE, FAILED_ITEMS, NO_REDIS, UserError, explain, explain_file
from ..queue.schedules import Ended, Slot
from .schedule import Schedule

SAID_LINES = 5
"""Of a dataset's bad lines, so many are logged."""

log = logging.getLogger("draftmill.cron")


class Planned(NamedTuple):
    """What a slot submits."""

    submission: Submission
    retry_failed: bool
    reason: str = ""


Plan = Callable[[tuple[str, ...], str], Planned]
"""Reads the dataset that arguments of `draftmill submit` name, for a slot; raises UserError."""


@dataclass(frozen=True)
class Waiting:
    """All lines are in the queue; there is more to do when they have ended."""

    batch: str


@dataclass(frozen=True)
class Again:
    """It could not be done now, for a reason that passes."""

    reason: str


class Stopped(Exception):
    """Nothing more is to be done here."""


class Work(threading.Thread):
    """Takes a slot as far as it goes without waiting for workers. `batch` is what was submitted for it before.

    `result` tells how far that was, once the thread has ended. It may be killed at any moment and done again, here or
    elsewhere: the batch is the same one, and OUT gets each line once. What `is_long` feeds a dataset that does not fit
    into Redis: it waits for workers all the same, and does little.
    """

    result: Ended | Waiting | Again

    def __init__(self, redis: redis_py.Redis, plan: Plan, slot: Slot, schedule: Schedule, batch: str = "") -> None:
        super().__init__(name=f"draftmill-{slot}", daemon=True)
        self.result = Again("stopped")
        self._plan_arguments, self._slot, self._schedule, self._batch = plan, slot, schedule, batch
        self.is_long = False
        self._stopped = threading.Event()
        self._patience = Patience(redis, sleep=self._pause)
        self._redis = self._patience.redis

    def run(self) -> None:
        try:
            self.result = self._work()
        except Stopped:
            pass
        except BaseException as error:  # whatever it is, other slots go on
            self.result = self._explain(error)
        finally:
            self._patience.close()

    def stop(self) -> None:
        """Lets it end within a second, unless it reads a dataset just now."""
        self._stopped.set()

    def _work(self) -> Ended | Waiting:
        state = self._known()
        planned = self._plan() if state is None or state.submitted < state.total else None
        if not self._schedule.output:
            return self._submit(planned or self._plan())
        if planned and fits(planned.submission.survey):
            batch = self._submit(planned).batch
            self._remember(batch)
            return Waiting(batch)
        return self._collect(planned, state)

    def _known(self) -> BatchStatus | None:
        """The state of the batch that was submitted before."""
        state = self._patience(batches.status, self._redis, self._batch) if self._batch else None
        if self._batch and state is None:
            raise UserError(f"{self._batch} was forgotten before its results were written")
        return state

    def _plan(self) -> Planned:
        planned = self._plan_arguments(self._schedule.arguments, str(self._slot))
        self._go_on()
        survey = planned.submission.survey
        for note in survey.notes.lines():
            log.info("%s: Note: %s", self._slot, note)
        for line in survey.bad_lines[:SAID_LINES]:
            log.info("%s: Bad %s", self._slot, line)
        if survey.bad > SAID_LINES:
            log.info("%s: %s more", self._slot, count(survey.bad - SAID_LINES, "bad line"))
        for note in self._patience(lambda: list(shares.notes(self._redis, planned.submission))):
            log.info("%s: Note: %s", self._slot, note)
        return planned

    def _submit(self, planned: Planned) -> Ended:
        """Queues all lines, or leaves them to a feeder; how the slot ends if nothing is to be written."""
        submission = planned.submission
        feed = self._feed(planned)
        self._patience(feed.begin)
        try:
            feed.detach(self._go_on)
            if feed.left:
                log.info("%s: %s left to a feeder", self._slot, count(feed.left, "line"))
        except NoRoom as full:
            log.info("%s: %s", self._slot, full.message)
            self.is_long = True
            feed.restart()
            feed.to_end(self._go_on)
        batch, bad = submission.info.id, submission.survey.bad
        return Ended(self._slot.at, FAILED_ITEMS if bad else DONE, f"submitted as {batch}", batch, bad=bad)

    def _feed(self, planned: Planned, output: Output | None = None) -> Feed:
        return Feed(planned.submission, self._patience, output, planned.retry_failed, planned.reason)

    def _collect(self, planned: Planned | None, state: BatchStatus | None) -> Ended | Waiting:
        """Writes results to OUT, and meanwhile queues what is `planned`: so a large dataset never fills Redis."""
        with self._open(planned, state) as output:
            batch = output.manifest.batch
            if planned is None and self._patience(batches.handed, self._redis, batch) > output.ended:
                planned = self._plan_anew(batch, state)
            self._remember(batch)
            feed = self._feed(planned, output) if planned else None
            if planned and feed:
                self.is_long = not fits(planned.submission.survey)
                self._patience(feed.begin)
            with Collector(Follower(self._patience, batch, feed), output) as collector:
                for state in collector:
                    self._go_on(state)
                    if feed and feed.exhausted and not state.complete:
                        collector.settle()
                        return Waiting(batch)
                if state and output.ended < state.ended:
                    refuse_collected(state)
                collector.take_bad_lines()
            output.finish()
            output.send()
            code = FAILED_ITEMS if output.failed or output.bad else DONE
            return Ended(self._slot.at, code, where(output), batch, output.done, output.failed, output.bad)

    @contextmanager
    def _open(self, planned: Planned | None, state: BatchStatus | None) -> Iterator[Output]:
        if planned is None:
            assert state
            with self._place() as place, Output(place, state.id, False, state.source, state.parameters) as output:
                yield output
            return
        info, survey = planned.submission.info, planned.submission.survey
        is_another = self._batch not in ("", info.id)  # the dataset changed before all of it was submitted
        about = info.source, info.parameters, survey.content, survey.keys
        with self._place(is_another) as place, Output(place, info.id, is_another, *about) as output:
            yield output

    def _place(self, is_another: bool = False) -> Place:
        out = self._schedule.out(self._slot.at)
        if not is_url(out):
            try:
                Path(out).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(explain_file(error, "cannot write", out)) from error
        places.check(out)
        return places.place_of(out, is_another)

    def _plan_anew(self, batch: str, state: BatchStatus | None) -> Planned:
        """For an OUT that lacks results which Redis has no longer: a scheduler on another machine may have had them."""
        planned = self._plan()
        if planned.submission.info.id != batch and state:
            refuse_collected(state)
        return planned

    def _remember(self, batch: str) -> None:
        self._batch = batch
        self._patience(store.submitted, self._redis, self._slot, batch)

    def _explain(self, error: BaseException) -> Ended | Again:
        told = explain(error)
        if isinstance(error, Busy | Unsent) or told.exit_code == NO_REDIS:
            return Again(told.message)
        log.debug("%s: where it failed", self._slot, exc_info=error)
        return Ended(self._slot.at, told.exit_code, told.message, self._batch)

    def _go_on(self, _: BatchStatus | None = None) -> None:
        if self._stopped.is_set():
            raise Stopped

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise Stopped
