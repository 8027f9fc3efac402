"""Follows a batch: hands on its results as they come, and its state; outlives a Redis that is away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import redis as redis_py

from ..queue import batches, ending
from ..queue.batches import BatchStatus, Result
from ..queue.errors import UserError
from .patience import Patience
from .submission import POLL_SECONDS, Feed

PAGE = 500
"""Results that are read at once."""
BLOCK_SECONDS = 1.0
"""How long Redis is asked to wait for the next result before the state is looked at again."""
GATHER_SECONDS = 0.05
"""After a page that is not full, so that results which come one by one are read some at a time."""


class Page(NamedTuple):
    """Results that are new, and the state of the batch as it was before they were read."""

    results: list[Result]
    state: BatchStatus


def known(redis: redis_py.Redis, batch: str) -> BatchStatus:
    """The state of a batch that must exist."""
    found = batches.status(redis, batch)
    if found is None:
        raise UserError(f"no batch {batch!r} here; `draftmill status` lists the batches of this Redis")
    return found


def current(redis: redis_py.Redis, batch: str) -> BatchStatus:
    """The same, for those who want the batch to end."""
    return swept(redis, known(redis, batch))


def swept(redis: redis_py.Redis, state: BatchStatus) -> BatchStatus:
    """Ends what a cancelled batch has in leases that ran out: there may be no worker that does. Returns its state."""
    if state.is_cancelled and not state.complete and ending.sweep(redis, state.id) is not None:
        return known(redis, state.id)
    return state


class Follower:
    """Iterates over the results of a batch, a page at a time, until it is complete; a page may be empty.

    With a `feed` it queues the batch's lines as well, and ends when that has queued all. `after` is the stream entry
    behind which it begins. For a page that is not there yet it waits `block` seconds. `is_idle` says that the last look
    found nothing to do.
    """

    def __init__(
        self,
        patience: Patience,
        batch: str,
        feed: Feed | None = None,
        after: str = "0-0",
        block: float = BLOCK_SECONDS,
    ) -> None:
        self.patience, self.batch, self.feed, self.after, self.block = patience, batch, feed, after, block
        self.redis = patience.redis
        self.is_idle = False

    def __iter__(self) -> Iterator[Page]:
        while True:
            page, is_last = self.patience(self.look, self.block)
            yield page
            if is_last:
                return
            if 0 < len(page.results) < PAGE:
                time.sleep(GATHER_SECONDS)

    def look(self, block: float = 0) -> tuple[Page, bool]:
        """The next page, and whether no other will follow; waits up to `block` seconds for the first result."""
        state = batches.status(self.redis, self.batch)
        fed = self.feed is not None and self.feed.advance(state)
        state = swept(self.redis, state or known(self.redis, self.batch))
        is_fed = self.feed is None or self.feed.exhausted
        block = 0 if fed or state.complete else block
        results = batches.read(self.redis, self.batch, self.after, PAGE, block)
        if results:
            self.after = results[-1].entry
        self.is_idle = not (results or fed or state.complete)
        return Page(results, state), is_fed and state.complete and not results

    def states(self) -> Iterator[BatchStatus]:
        """Each new state until the batch is complete, for those who may not read results."""
        while True:
            state = self.patience(current, self.redis, self.batch)
            yield state
            if state.complete:
                return
            time.sleep(POLL_SECONDS)
