"""Puts a dataset's jobs into the queue, with a window so that a large dataset never fills Redis."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis as redis_py

from ..input.dataset import Dataset
from ..queue import batches
from ..queue.batches import BatchInfo, BatchStatus, Submitted
from ..queue.errors import UserError
from ..queue.wire import JobBody

CHUNK = 500
WINDOW = 20_000
"""Lines of a batch that may be in Redis without a result: about 60 MB."""
POLL_SECONDS = 0.25

BEGINNING = 200
"""Characters by which lines of one template are known: some fifty tokens."""


class Cancelled(UserError):
    """The batch was cancelled while it was submitted."""


def submit(
    redis: redis_py.Redis,
    dataset: Dataset,
    batch: BatchInfo,
    tick: Callable[[BatchStatus], None],
    retry_failed: bool = False,
) -> Submitted:
    """Queues every line that has no result yet, waiting while WINDOW lines have none; returns what became of all lines.

    Of every CHUNK lines those that begin alike follow each other, so that a worker claims them together and reads their
    template once. Batches take turns line by line all the same.

    Submitting again queues only what is missing, at any time and however often it was cut; with `retry_failed` also the
    lines that failed. `tick` is called with each new state of the batch; what it raises ends the submission.
    """
    batches.create(redis, batch)
    sent, read = Submitted(), 0
    chunk: list[JobBody] = []
    for item in dataset:
        if isinstance(item, JobBody):
            read += 1
            chunk.append(item.model_copy(update={"batch": batch.id}))
        if len(chunk) == CHUNK:
            sent += batches.submit_chunk(redis, batch, together(chunk), retry_failed=retry_failed)
            _wait(redis, batch, tick)
            chunk = []
    if chunk:
        sent += batches.submit_chunk(redis, batch, together(chunk), retry_failed=retry_failed)
        _wait(redis, batch, tick)
    if read != batch.total:
        raise UserError(
            f"{dataset.name} changed while it was submitted: {batch.total:,} lines at first, then {read:,}; "
            f"draftmill cancel {batch.id}, and submit the file as it is now"
        )
    return sent


def refuse_cancelled(state: BatchStatus | None) -> None:
    """Raises UserError for a batch that was cancelled: it stays so."""
    if state and state.is_cancelled:
        raise UserError(
            f"{state.id} was cancelled; `draftmill collect {state.id} -o OUT` writes what it has, "
            "a change to the file or its parameters makes a new batch"
        )


def together(chunk: list[JobBody]) -> list[JobBody]:
    """Those that begin alike one after another, in the order of the first of each."""
    alike: dict[str, list[JobBody]] = {}
    for body in chunk:
        text = body.prompt or "\n".join(message.content for message in body.messages or ())
        alike.setdefault(text[:BEGINNING], []).append(body)
    return [body for bodies in alike.values() for body in bodies]


def _wait(redis: redis_py.Redis, batch: BatchInfo, tick: Callable[[BatchStatus], None]) -> None:
    """Returns when the queue has room for more of the batch."""
    while True:
        state = batches.status(redis, batch.id)
        if state is None:
            raise UserError(f"{batch.id} vanished from Redis while it was submitted; run the same command again")
        tick(state)
        if state.is_cancelled:
            raise Cancelled(f"{batch.id} was cancelled while it was submitted")
        if state.submitted - state.ended <= WINDOW:
            return
        time.sleep(POLL_SECONDS)
