"""Takes a batch's results out of Redis into OUT: written, synced to the disk, and only then dropped from Redis."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import orjson
import redis.exceptions as rx

from ..output.files import Busy
from ..output.output import Output
from ..queue import batches, ending
from ..queue.batches import BatchStatus, Result
from ..queue.errors import AGAIN, UserError
from .follower import Follower
from .submission import Feed

SYNC_SECONDS = 2.0
"""How long a result may be in OUT before it is synced to the disk and dropped from Redis."""
MOST_PENDING = 2_000
"""Results that are dropped at once, so that neither Redis nor this process holds many."""
HOLD_SECONDS = 30
"""After this long without a sign of life from one OUT, another may take its batch over."""


class Collector:
    """Iterates over the states of a batch while its results go into OUT; a context manager, so that others may follow.

    With `leave` the results stay in Redis. Only one OUT at a time may take results, for they are dropped as they come.
    """

    def __init__(self, follower: Follower, output: Output, leave: bool = False) -> None:
        self._follower, self._output, self._leave = follower, output, leave
        self._redis, self._batch, self._patience = follower.redis, follower.batch, follower.patience
        self._pending: list[Result] = []
        self._outages = self._patience.outages
        self._synced = self._held = time.monotonic()
        self.holder = f"{output.manifest.token} {socket.gethostname()}:{output.place.address}"

    def __enter__(self) -> Collector:
        self._patience(self._hold)
        return self

    def __exit__(self, *_: object) -> None:
        if not (self._leave or self._patience.is_away):
            with suppress(rx.RedisError):
                batches.hold(self._redis, self._batch, self.holder, 0)

    def __iter__(self) -> Iterator[BatchStatus]:
        for page in self._follower:
            self._take(page.results)
            yield page.state
        self.settle()

    def until(self, lines: int, feed: Feed) -> Iterator[BatchStatus]:
        """Feeds and collects until OUT has `lines` lines, whatever becomes of those in Redis."""
        self._follower.feed = feed
        while (before := self._output.ended) < lines:
            for state in self:
                yield state
                if self._output.ended >= lines:
                    break
            if self._output.ended == before and not feed.sent.new:
                raise UserError(
                    f"Redis has no results for {lines - before:,} lines of {self._batch} and does not run them again; "
                    f"draftmill forget {self._batch}, and {AGAIN}"
                )
            feed.restart()  # should Redis have lost lines, or others have taken results
        self._follower.feed = None
        self.settle()

    def step(self) -> BatchStatus:
        """Takes what there is now; returns the state before."""
        while True:
            page, _ = self._patience(self._follower.look)
            self._take(page.results)
            if not page.results:
                self.settle()
                return page.state

    def take_bad_lines(self) -> None:
        """Writes the bad lines that the submission left with the batch."""
        for raw in self._patience(lambda: list(ending.bad_lines(self._redis, self._batch))):
            self._output.errors.add(raw, orjson.loads(raw))

    def refuse(self, state: BatchStatus) -> None:
        """Raises UserError: results that OUT lacks went to another OUT, which it names while that takes them."""
        place = batches.held_by(self._redis, state.id)
        if place and place != self.holder.partition(" ")[2]:
            raise UserError(f"the results of {state.id} go to {place}, and some are no longer in Redis; collect there")
        refuse_collected(state)

    @property
    def due(self) -> float:
        """When it must go on even if there is no result (time.monotonic): to settle."""
        return self._synced + SYNC_SECONDS if self._pending else math.inf

    def settle(self) -> None:
        """Syncs OUT to the disk; then Redis needs its results no longer."""
        self._output.save()
        if not self._leave:
            self._patience(batches.acknowledge, self._redis, self._batch, self._pending)
        self._pending.clear()
        self._synced = time.monotonic()

    def _take(self, results: list[Result]) -> None:
        if self._outages != self._patience.outages:  # Redis may have lost what it was told last: read all that it has
            self._outages, self._follower.after = self._patience.outages, "0-0"
        if time.monotonic() - self._held > HOLD_SECONDS / 6:
            self._patience(self._hold)
        for result in results:
            self._output.write(result)
        self._output.flush()
        self._pending += results
        if self._pending and (len(self._pending) >= MOST_PENDING or time.monotonic() - self._synced > SYNC_SECONDS):
            self.settle()

    def _hold(self) -> None:
        if self._leave:
            return
        other = batches.hold(self._redis, self._batch, self.holder, HOLD_SECONDS)
        if other is not None:
            raise Busy(
                f"the results of {self._batch} go to {other}; collect there, use --leave with both, or end that first "
                f"(if it was killed, wait {HOLD_SECONDS} s)"
            )
        self._held = time.monotonic()


def refuse_collected(state: BatchStatus) -> None:
    """Results that another file holds by now cannot be written again."""
    when = time.strftime(" on %Y-%m-%d %H:%M", time.localtime(state.collected)) if state.collected else ""
    raise UserError(
        f"the results of {state.id} were collected{when} and are no longer in Redis; "
        f"to generate them anew: draftmill forget {state.id}, and submit it again"
    )
