"""Takes each batch from status to status: validate, queue and collect, publish. A few threads do so for all batches;
those that wait for results need none.

A kill at any moment loses nothing: what a batch is at stands in its record, which of its requests have ended in its
output, and each step may be taken again. So a server that starts goes on with every unfinished batch.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import redis as redis_py
import redis.exceptions as rx

from ...client.collect import Collector
from ...client.follower import Follower
from ...client.patience import impatient
from ...client.submission import Cancelled, Feed, Submission
from ...client.waiter import Waiter, Waiting
from ...input.dataset import BadLine, Dataset, Survey
from ...input.lines import Defaults
from ...output.files import WriteError
from ...output.output import Output
from ...queue import batches
from ...queue.batches import BatchInfo, BatchStatus
from ...queue.errors import BUG, UserError, explain
from ...queue.wire import PRIORITIES, JobBody
from .api_errors import LOG
from .batch_record import BatchRecord
from .files import Files
from .models import Models
from .publish import Refused, Unqueued, publish
from .records import Shelf
from .validate import LineError, validate

THREADS = 8
"""Batches that are validated, queued, collected or published at a time."""
RETRY_SECONDS = 2.0
"""How long a batch waits when Redis is out of reach or the disk is full."""
JOIN_SECONDS = 5.0

UNQUEUED = "the batch was cancelled before this request was queued"


class Ended(Exception):
    """The batch is to end before all of its requests have."""


class Stopping(Exception):
    """The server is to end; the next one goes on."""


Course = Generator[Waiting | None, None, None]
"""What becomes of a batch, step by step: it waits, or (None) lets others have their turn."""


class Runner:
    """All unfinished batches. `folder` has a folder for each, with links to its input and its output."""

    def __init__(
        self, redis: redis_py.Redis, shelf: Shelf[BatchRecord], files: Files, models: Models, folder: Path
    ) -> None:
        self.shelf = shelf
        self._redis, self._files, self._models, self._folder = redis, files, models, folder
        self._stopping = threading.Event()
        self._turns: SimpleQueue[str | None] = SimpleQueue()
        self._resting: dict[str, Course] = {}
        self._said: dict[str, str] = {}
        self._waiter = Waiter(redis, self._turns.put, self._is_urgent)
        self._threads = [
            threading.Thread(target=self._take_turns, daemon=True, name=f"batches-{n}") for n in range(THREADS)
        ]

    def open(self, batch: BatchRecord, source: Path) -> None:
        """Adds a new batch and starts it. Its own link to the input file lets users delete that."""
        self._work(batch.id).mkdir(parents=True)
        os.link(source, self._input(batch.id))
        self.shelf.put(batch)
        self._turns.put(batch.id)

    def resume(self) -> None:
        """Goes on with the batches that an earlier server left, and drops what kills left of others."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for folder in self._folder.iterdir():
            if folder.name not in self.shelf or not self.shelf[folder.name].is_open:
                shutil.rmtree(folder)
        for thread in (*self._threads, self._waiter):
            thread.start()
        for batch in self.shelf:
            if batch.is_open:
                self._turns.put(batch.id)

    def sweep(self, retention: float) -> None:
        """Forgets the batches that ended so many seconds ago."""
        for batch in self.shelf:
            if batch.ended_at is not None and time.time() >= batch.ended_at + retention:
                self.shelf.remove(batch.id)

    def stop(self) -> None:
        """Lets all batches end where they can go on later."""
        deadline = time.monotonic() + JOIN_SECONDS
        self._stopping.set()
        self._waiter.stop()
        for last in (*list(self._resting), *(None for _ in self._threads)):
            self._turns.put(last)
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))

    def _take_turns(self) -> None:
        while (id := self._turns.get()) is not None:
            try:
                self._go_on(id)
            except Exception as error:  # as when the disk is too full to say that the batch failed
                LOG.error("%s rests until the server starts again: %s", id, explain(error).message, exc_info=error)

    def _go_on(self, id: str) -> None:
        """Takes a batch to where it waits next, ends, or meets a Redis that is away or a full disk."""
        course = self._resting.pop(id, None) or self._run(id)
        try:
            if self._stopping.is_set():
                raise Stopping
            waiting = next(course)
        except (StopIteration, Stopping):
            self._close(course)
            self._said.pop(id, None)
            return
        except Exception as error:
            if self._passes(id, error):
                self._wait_out(id, error)
            else:
                self._give_up(id, error)
            return
        self._resting[id] = course
        if waiting:
            self._waiter.add(waiting)
        else:
            self._turns.put(id)

    def _close(self, course: Course) -> None:
        """What it holds, others may have."""
        with suppress(rx.RedisError, OSError, WriteError):
            course.close()

    def _wait_out(self, id: str, error: Exception) -> None:
        if (message := explain(error).message) != self._said.get(id):
            LOG.warning("%s waits: %s", id, message)
            self._said[id] = message
        self._waiter.add(Waiting(id, until=time.monotonic() + RETRY_SECONDS))

    def _is_urgent(self, id: str) -> bool:
        batch = self.shelf[id]
        return batch.is_ending or time.time() >= batch.expires_at

    def _passes(self, id: str, error: Exception) -> bool:
        """Whether trying again may help: not if the batch's results were collected by somebody else, for instance."""
        if isinstance(error, rx.RedisError | OSError | WriteError):
            return True
        try:
            return isinstance(error, UserError) and batches.status(self._redis, id) is None  # Redis lost it
        except rx.RedisError:
            return True

    def _give_up(self, id: str, error: Exception) -> None:
        known = explain(error)
        LOG.error("%s failed: %s", id, known.message, exc_info=error if known.exit_code == BUG else None)
        errors = [asdict(LineError("server_error", known.message))]
        self.shelf.update(id, lambda batch: replace(batch.at("failed"), errors=errors))
        shutil.rmtree(self._work(id), ignore_errors=True)

    def _run(self, id: str) -> Course:
        if not self.shelf[id].pair:
            self._validate(self.shelf[id])
        batch = self.shelf[id]
        if batch.is_open:
            with Output(self._work(id) / "results.jsonl", id) as output:
                if output.ended < batch.total:
                    yield from self._generate(batch, output)
                output.finish()
                self._publish(output)
            LOG.info("%s %s", id, self.shelf[id].status)
        shutil.rmtree(self._work(id))

    def _validate(self, batch: BatchRecord) -> None:
        """Sees whether the file as a whole can run; if not, the batch has failed."""
        found = validate(self._input(batch.id), batch.endpoint, self._models.pair)
        if found.errors:
            errors = [asdict(error) for error in found.errors]
            self.shelf.update(batch.id, lambda batch: replace(batch.at("failed"), errors=errors))
            return
        adapters = {model: adapter for model in found.models if (adapter := self._models.adapter(model))}
        learned: dict[str, Any] = {"pair": found.pair, "model": found.model, "adapters": adapters, "total": found.total}
        dataset = self._dataset(replace(batch, **learned))
        refused = sum(isinstance(item, BadLine) for item in dataset)
        learned |= {"refused": refused, "failed": refused, "notes": list(dataset.notes.lines())}
        self.shelf.update(batch.id, lambda batch: replace(batch.at("in_progress"), **learned))

    def _generate(self, batch: BatchRecord, output: Output) -> Course:
        """Queues the requests and collects their results until each has one, or the batch is to end."""
        dataset = self._dataset(batch)
        self._write_refused(dataset, output)
        survey = dataset.survey() if batch.total > batch.refused else Survey()
        info = BatchInfo(batch.id, batch.pair, PRIORITIES[1], batch.total, batch.input_file_id, batch.user)
        patience = impatient(self._redis)  # `_go_on` tries again
        feed = Feed(Submission(dataset, survey, info), patience, output)
        follower = Follower(patience, batch.id, block=0)
        with Collector(follower, output) as collector:
            try:
                for state in collector.until(batch.total, feed):
                    self._tick(state, output)
                    yield _rest(state, follower, collector)
            except (Ended, Cancelled):
                follower.feed = None
                yield from self._end(batch.id, dataset, follower, collector, output)
        self.shelf.update(batch.id, lambda batch: batch.at("finalizing"))

    def _tick(self, state: BatchStatus, output: Output) -> None:
        """Shows how far a batch is, and notices that it is to end."""
        batch = self._count(state, output)
        if time.time() >= batch.expires_at and not batch.is_ending and not state.complete:
            batch = self.shelf.update(batch.id, lambda batch: replace(batch, expired_at=int(time.time())))
        if batch.is_ending or state.is_cancelled:
            raise Ended

    def _count(self, state: BatchStatus, output: Output) -> BatchRecord:
        if self._stopping.is_set():
            raise Stopping
        batch = self.shelf[state.id]
        failed = max(batch.failed, batch.refused + state.failed)  # Redis may have lost some
        return self.shelf.show(state.id, completed=output.done, failed=failed, paused=state.is_paused)

    def _end(self, id: str, dataset: Dataset, follower: Follower, collector: Collector, output: Output) -> Course:
        """Cancels what is queued or runs, collects what there is, and writes an error for what was never queued."""
        if not self.shelf[id].is_ending:  # by `draftmill cancel`
            self.shelf.update(id, lambda batch: batch.at("cancelling"))
        self.shelf.update(id, lambda batch: batch.at("finalizing"))
        if batches.status(self._redis, id) is not None:
            batches.cancel(self._redis, id)
            for state in collector:
                self._count(state, output)
                yield _rest(state, follower, collector)
        for job in dataset:
            if isinstance(job, JobBody) and not output.has(job.custom_id):
                output.write_bad(Unqueued(job.line, UNQUEUED, job.custom_id, id))

    def _write_refused(self, dataset: Dataset, output: Output) -> None:
        for item in dataset:
            if isinstance(item, BadLine) and not output.has(item.custom_id or ""):
                output.write_bad(Refused(item.number, item.reason, item.custom_id, output.manifest.batch))

    def _publish(self, output: Output) -> None:
        """Turns the output into files of the user's; then Redis needs to know nothing more of the batch."""
        id = output.manifest.batch
        batch = publish(self.shelf[id], output, self._input(id), self._files)
        batches.forget(self._redis, batch.id)
        self.shelf.put(batch.at("expired" if batch.expired_at else "cancelled" if batch.cancelling_at else "completed"))

    def _dataset(self, batch: BatchRecord) -> Dataset:
        translation = batch.translation
        return Dataset(str(self._input(batch.id)), batch.pair, Defaults(served=True), rewrite=translation.line)

    def _work(self, id: str) -> Path:
        return self._folder / id

    def _input(self, id: str) -> Path:
        return self._work(id) / "input.jsonl"


def _rest(state: BatchStatus, follower: Follower, collector: Collector) -> Waiting | None:
    if not follower.is_idle:
        return None
    return Waiting(follower.batch, follower.after, collector.holder, collector.due, state.is_paused)
