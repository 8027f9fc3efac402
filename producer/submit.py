"""Puts a dataset's jobs into the queue, with a window so that a large dataset never fills Redis."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis as redis_py

from . import batches
from .batches import BatchInfo, BatchStatus
from .contract import JobBody
from .dataset import Dataset
from .errors import UserError

CHUNK = 500
WINDOW = 20_000
"""Lines of a batch that may be in Redis without a result: about 60 MB."""
POLL_SECONDS = 0.25


def submit(
    redis: redis_py.Redis,
    dataset: Dataset,
    batch: BatchInfo,
    tick: Callable[[BatchStatus], None],
) -> None:
    """Queues every line that has no result yet, waiting while WINDOW lines have none.

    Submitting again queues only what is missing. `tick` is called with each new state of the batch.
    """
    batches.create(redis, batch)
    chunk: list[JobBody] = []
    for item in dataset:
        if isinstance(item, JobBody):
            chunk.append(item.model_copy(update={"batch": batch.id}))
        if len(chunk) == CHUNK:
            _send(redis, batch, chunk, tick)
            chunk = []
    if chunk:
        _send(redis, batch, chunk, tick)


def _send(redis: redis_py.Redis, batch: BatchInfo, chunk: list[JobBody], tick: Callable[[BatchStatus], None]) -> None:
    batches.submit_chunk(redis, batch, chunk)
    while True:
        state = batches.status(redis, batch.id)
        if state is None:
            raise UserError(f"{batch.id} vanished from Redis while it was submitted; run the same command again")
        tick(state)
        if state.is_cancelled:
            raise UserError(f"{batch.id} was cancelled while it was submitted")
        if state.submitted - state.ended <= WINDOW:
            return
        time.sleep(POLL_SECONDS)
