"""A feeder: queues the lines that submitters left to it, as workers make room. `draftmill feed`, schedulers and servers
run one.

It holds nothing of its own: what is to be queued lies in Redis, and a chunk is dropped there only once it is queued. So
a feeder may be killed at any moment, and another goes on.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

import redis as redis_py

from ..queue import batches
from ..queue.batches import BatchInfo, BatchStatus
from ..queue.errors import UserError, redis_trouble
from ..queue.rest import duty, stored
from .patience import Patience
from .submission import is_full

LOOK_SECONDS = 1.0
"""Between two looks for room. A window has work for longer."""

log = logging.getLogger("draftmill.feed")


class FleetFeeder(threading.Thread):
    """Feeds while it has the duty, until it is told to stop. Says by `say` that Redis is away, or refuses something."""

    def __init__(self, redis: redis_py.Redis, say: Callable[[str], object] = lambda _: None) -> None:
        super().__init__(name="draftmill-feeder", daemon=True)
        self.feeder = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
        self._stopping = threading.Event()
        self._say, self._patience = say, Patience(redis, say, sleep=self._pause)
        self._redis = self._patience.redis
        self._bytes_per_line: dict[str, float] = {}

    def run(self) -> None:
        said = ""
        while not self._stopping.is_set():
            trouble = ""
            try:
                self._patience(self.look)
            except _Stopped:
                break
            except redis_py.RedisError as error:
                trouble = redis_trouble(error)
                if trouble != said:
                    self._say(f"{trouble}; trying again")
            said = trouble
            self._stopping.wait(LOOK_SECONDS)
        with suppress(redis_py.RedisError):  # the duty runs out by itself
            duty.leave(self._redis, self.feeder)
        self._patience.close()

    def ask_to_stop(self) -> None:
        """Lets it end after the chunk that it queues just now."""
        self._stopping.set()

    def stop(self) -> None:
        """Lets it end, and waits for that."""
        self.ask_to_stop()
        self.join()

    def look(self) -> None:
        """Queues all that there is room for, a chunk of each batch in turn; nothing without the duty."""
        waiting = stored.batches(self._redis) if duty.take(self._redis, self.feeder) else []
        self._bytes_per_line = {batch: size for batch, size in self._bytes_per_line.items() if batch in waiting}
        while waiting and not self._stopping.is_set():
            states = {state.id: state for state in batches.statuses(self._redis, waiting)}
            waiting = [batch for batch in waiting if self._feed(batch, states.get(batch))]

    def _feed(self, batch: str, state: BatchStatus | None) -> bool:
        """Queues the next chunk of a batch; False if there is none or no room for it, or another has the duty."""
        if state and not state.is_cancelled and is_full(state, self._bytes_per_line.get(batch, 0.0)):
            return False
        names = stored.names(self._redis, batch)
        if state is None or state.is_cancelled or not names:
            stored.tidy(self._redis, batch)
            return False
        if not duty.take(self._redis, self.feeder):
            return False
        chunk = stored.read(self._redis, batch, names[0])
        if chunk is None:  # another feeder was faster
            return True
        self._queue(state, chunk)
        if len(names) == 1:
            log.info("%s: all lines are queued", batch)
        return len(names) > 1

    def _queue(self, state: BatchStatus, chunk: stored.Stored) -> None:
        try:
            lines = chunk.open()
        except UserError as error:
            log.warning("%s: %s", state.id, error.message)
        else:
            self._bytes_per_line[state.id] = lines.size / chunk.name.lines
            info = BatchInfo(state.id, state.pair, state.priority, state.total)
            again, reason = lines.retry_failed, lines.reason
            batches.submit_chunk(self._redis, info, lines.bodies, retry_failed=again, reason=reason)
        stored.fed(self._redis, state.id, chunk)

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise _Stopped


class _Stopped(Exception):
    """Nothing more is to be queued here."""
