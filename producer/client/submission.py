"""A dataset on its way into the queue: planned, then fed with a window, so that a large dataset never fills Redis.

What finds no room may be left to a feeder (`fleet_feeder.py`), and the submitter may go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson
import redis as redis_py

from ..input.dataset import Dataset, Survey
from ..output.output import Output
from ..queue import batches, ending, wire
from ..queue.batches import BatchInfo, BatchStatus, Submitted
from ..queue.errors import AGAIN, UserError
from ..queue.rest import stored
from ..queue.wire import LEAST_KEPT, MOST_KEPT, PRIORITIES, JobBody
from .patience import Patience

WINDOW = 20_000
"""Lines of a batch that may be in Redis without a result: about 60 MB. They are of all its pairs together, so the lines
of one that nobody serves may fill it and hold up the others."""
WINDOW_BYTES = 512 * 2**20
"""Of long lines fewer: these bytes as JSON. Redis keeps them compressed."""
POLL_SECONDS = 0.25
"""Between two looks for room, where results may not be read."""

BEGINNING = 200
"""Characters by which lines of one template are known: some fifty tokens."""


class Cancelled(UserError):
    """The batch was cancelled while it was submitted."""


class NoRoom(UserError):
    """Redis holds as many lines for feeders as it may."""


@dataclass(frozen=True)
class Submission:
    """A dataset as it was surveyed, and the batch that it makes."""

    dataset: Dataset
    survey: Survey
    info: BatchInfo

    def begin(self, redis: redis_py.Redis, lacking: int | None = None) -> BatchStatus:
        """Registers the batch with its bad lines; may be repeated. Raises UserError if it was cancelled.

        If only `lacking` of its lines are to be queued, a Redis that does not know the batch waits for no more.
        """
        state = batches.status(redis, self.info.id)
        refuse_cancelled(state)
        if lacking is None:
            state = batches.create(redis, self.info)
        elif state is None:
            state = batches.create(redis, replace(self.info, total=lacking))
        ending.add_bad(redis, self.info.id, [orjson.dumps(line.record()) for line in self.survey.bad_lines])
        return state


def plan(
    dataset: Dataset,
    survey: Survey,
    user: str,
    priority: str = PRIORITIES[1],
    parameters: Mapping[str, Any] | None = None,
    kept_for: float | None = None,
) -> Submission:
    """What `user` makes of a dataset. The same lines with the same parameters are the same batch of that user.

    Complete, it is kept for so many seconds; None leaves that as it was.
    """
    id = wire.batch_of(survey.identity, user)
    pair, *others = survey.pairs
    seconds = None if kept_for is None else int(kept_for)
    if seconds is not None and not LEAST_KEPT <= seconds <= MOST_KEPT:
        raise UserError(f"results cannot be kept for {seconds} s; keep_results is {LEAST_KEPT} s to ten years")
    info = BatchInfo(id, pair, priority, survey.good, dataset.name, user, parameters or {}, tuple(others), seconds)
    return Submission(dataset, survey, info)


class Feed:
    """Queues the lines of a submission that have no result yet, a chunk at a time while less than a window have none.

    Lines that `output` has are not queued; those that it lacks are, even if their results were handed over. With
    `retry_failed` lines that failed are queued again whose error has `reason` in its code or message. After Redis was
    away all lines are looked at again, for it may have lost some.
    """

    def __init__(
        self,
        submission: Submission,
        patience: Patience,
        output: Output | None = None,
        retry_failed: bool = False,
        reason: str = "",
    ) -> None:
        self.submission = submission
        self._redis, self._patience, self._output = patience.redis, patience, output
        self._retry_failed, self._reason = retry_failed, reason
        self._bytes_per_line = 0.0
        self.restart()

    def begin(self) -> BatchStatus:
        """Registers the batch, with as many lines as are to be queued."""
        lacking = None if self._output is None else self.submission.info.total - self._output.ended
        return self.submission.begin(self._redis, lacking)

    def restart(self) -> None:
        """Begins again with the first line."""
        self.sent = Submitted()
        self.left = 0
        self.exhausted = False
        self._outages = self._patience.outages
        self._chunks = enumerate(self.submission.dataset.chunks(self.submission.survey))

    def advance(self, state: BatchStatus | None) -> bool:
        """Queues the next chunk if there is room; False if there is nothing to do just now.

        Of a chunk, lines that begin alike follow each other, so that a worker claims them together and reads their
        template once. `state` is that of the batch; None if Redis does not know it (any longer).
        """
        if state is None:
            state = self.begin()
            self.restart()
        if self._outages != self._patience.outages:
            self.restart()
        if self.exhausted:
            return False
        if state.is_cancelled:
            raise Cancelled(f"{state.id} was cancelled while it was submitted")
        if self.is_full(state):
            return False
        if (found := next(self._chunks, None)) is None:
            self.exhausted = True
            return False
        _, chunk = found
        self._bytes_per_line = chunk.size / len(chunk.jobs)
        batch = self.submission.info
        lacking = [body.model_copy(update={"batch": batch.id}) for body in chunk.jobs if not self._ended(body)]
        if lacking:
            self.sent += batches.submit_chunk(
                self._redis,
                batch,
                together(lacking),
                retry_failed=self._retry_failed,
                reason=self._reason,
                missing=self._output is not None,
            )
        return True

    def is_full(self, state: BatchStatus) -> bool:
        """Whether the window is full, if its lines are as long as the latest ones."""
        return is_full(state, self._bytes_per_line)

    def _ended(self, body: JobBody) -> bool:
        return self._output is not None and self._output.has(body.custom_id)

    def to_end(
        self,
        tick: Callable[[], object] = lambda: None,
        full: Callable[[BatchStatus], object] = lambda _: None,
    ) -> Submitted:
        """Queues all lines; returns what became of them. `tick` is called again and again, and `full` with the state
        while the window is full; what they raise ends the submission.
        """
        while not self.exhausted:
            state, advanced = self._patience(self._look)
            tick()
            if state and self.is_full(state):
                full(state)
            if not advanced and not self.exhausted:
                time.sleep(POLL_SECONDS)
        return self.sent

    def detach(self, tick: Callable[[], object] = lambda: None) -> Submitted:
        """Queues the lines that there is room for, and leaves the rest, `left` lines, to a feeder. `tick` is called
        again and again; what it raises ends that. Raises NoRoom if Redis may not hold so much for feeders; what is left
        by then stays there.
        """
        most = self._patience(stored.most_bytes, self._redis)
        while not self.exhausted:
            tick()
            state, advanced = self._patience(self._look)
            if state and not advanced and not self.exhausted:
                self._patience(self._leave, most)
        return self.sent

    def _leave(self, most: int) -> None:
        """Leaves the next chunk to a feeder."""
        if self._outages != self._patience.outages:
            self.restart()
        if (found := next(self._chunks, None)) is None:
            self.exhausted = True
            return
        number, chunk = found
        batch = self.submission.info.id
        bodies = together([body.model_copy(update={"batch": batch}) for body in chunk.jobs])
        kept = stored.keep(self._redis, batch, number, bodies, most, self._retry_failed, self._reason)
        match kept.became:
            case "kept":
                self.left += len(bodies)
            case "full":
                raise NoRoom(
                    f"Redis may hold {most / 2**20:,.0f} MB for feeders, and that is full; {self.left:,} lines of "
                    f"{self.submission.info.source} are handed over. Once there is room, {AGAIN}, or leave out --detach"
                )
            case "known":
                self.sent += Submitted(queued=kept.queued, done=len(bodies) - kept.queued)
            case "gone":
                self.restart()  # `advance` finds out why

    def _look(self) -> tuple[BatchStatus | None, bool]:
        state = batches.status(self._redis, self.submission.info.id)
        return state, self.advance(state)


def submit(
    patience: Patience,
    submission: Submission,
    tick: Callable[[], object] = lambda: None,
    full: Callable[[BatchStatus], object] = lambda _: None,
    retry_failed: bool = False,
    reason: str = "",
) -> Submitted:
    """Queues every line that has no result yet; returns what became of all lines.

    Submitting again queues only what is missing, at any time and however often it was cut.
    """
    feed = Feed(submission, patience, retry_failed=retry_failed, reason=reason)
    patience(feed.begin)
    return feed.to_end(tick, full)


def is_full(state: BatchStatus, bytes_per_line: float) -> bool:
    """Whether the window of a batch is full, if its lines are about so long as JSON."""
    return state.open > WINDOW or state.open * bytes_per_line > WINDOW_BYTES


def fits(survey: Survey) -> bool:
    """Whether all lines of a dataset may be in Redis at once."""
    return survey.good <= WINDOW and survey.size <= WINDOW_BYTES


def refuse_cancelled(state: BatchStatus | None) -> None:
    """Raises UserError for a batch that was cancelled: it stays so."""
    if state and state.is_cancelled:
        raise UserError(
            f"{state.id} was cancelled; `draftmill collect {state.id} -o OUT` writes what it has, "
            f"`draftmill forget {state.id}` lets it run anew"
        )


def together(chunk: list[JobBody]) -> list[JobBody]:
    """Those that begin alike one after another, in the order of the first of each."""
    alike: dict[str, list[JobBody]] = {}
    for body in chunk:
        text = "\n".join(text for _, text in body.parts)
        alike.setdefault(text[:BEGINNING], []).append(body)
    return [body for bodies in alike.values() for body in bodies]
