"""The states of all batches for those who look again and again, without reading all of them each time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, islice
from typing import Any

import redis as redis_py

from ..queue import batches, wire
from ..queue.batches import BatchStatus

MOST_OPEN, MOST_ENDED = 100, 100
"""Batches that a look reads again: of those that are open, and of those that have ended, whose failed lines may have
been queued anew."""
ROUND = 30
"""Looks until a few batches that have ended are read again."""
LATEST, SLICE = 100, 300
"""New batches are looked for among so many that say they are the newest, and among so many of the others, a slice a
look: the clocks of those who submit differ, and to list thousands of names takes longer than all else."""

CHANGING = ("generation", "total", "priority", "failed", "cancelled", "prompt_tokens", "completion_tokens")
CHANGING = (*CHANGING, "cancelled_at", "paused_at", "collected_at")
"""Fields of a batch that may change; beside them the times since when jobs wait."""


class BatchStates:
    """What was last read of each batch. A look reads new batches and some of the others, the longest unread first: up
    to MOST_OPEN open batches are read at each look, and those that have ended once in `round` looks. Not for several
    threads at a time.

    `open` and `ended` are in the order in which they were read, and `read` is what the last look read. `queued` counts
    the jobs that wait, of open batches that nobody cancelled.
    """

    def __init__(self, redis: redis_py.Redis, round: int = ROUND) -> None:
        self._redis, self._round = redis, round
        self.open: dict[str, BatchStatus] = {}
        self.ended: dict[str, BatchStatus] = {}
        self.read: list[BatchStatus] = []
        self.queued = 0
        self._names: list[str] = []
        self._rank = 0

    def look(self, shown: Iterable[str] = ()) -> list[str]:
        """Reads anew, those that are `shown` in any case; returns the ids of all, newest first. Raises RedisError."""
        new = self._new()
        most_ended = min(MOST_ENDED, -(-len(self.ended) // self._round))
        again = dict.fromkeys(chain(shown, islice(self.open, MOST_OPEN), islice(self.ended, most_ended)))
        known = [state for name in again if (state := self.open.get(name) or self.ended.get(name))]
        self.read = refreshed(self._redis, known)
        alike = {state.id for state in self.read}
        self.read += batches.statuses(self._redis, [*new, *(state.id for state in known if state.id not in alike)])
        for state in known:
            self._drop(state.id)
        for state in self.read:
            self._keep(state)
        if new or len(self._names) != len(self.open) + len(self.ended):
            states = [*self.open.values(), *self.ended.values()]
            self._names = [state.id for state in sorted(states, key=lambda state: state.created, reverse=True)]
        return self._names

    def _new(self) -> list[str]:
        """Batches of which nothing is known yet; at first all that there are."""
        if not self._names:
            return batches.newest(self._redis)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrange(wire.BATCHES, 0, LATEST - 1, desc=True)
            pipe.zrange(wire.BATCHES, self._rank, self._rank + SLICE - 1, desc=True)
            latest, slice = pipe.execute()
        self._rank = self._rank + SLICE if len(slice) == SLICE else 0
        names = dict.fromkeys(name.decode() for name in (*latest, *slice))
        return [name for name in names if name not in self.open and name not in self.ended]

    def _keep(self, state: BatchStatus) -> None:
        (self.ended if state.complete else self.open)[state.id] = state
        self.queued += _waiting(state)

    def _drop(self, name: str) -> None:
        if state := self.open.pop(name, None) or self.ended.pop(name, None):
            self.queued -= _waiting(state)


def _waiting(state: BatchStatus) -> int:
    return 0 if state.complete or state.is_cancelled else state.queued


def refreshed(redis: redis_py.Redis, known: Sequence[BatchStatus]) -> list[BatchStatus]:
    """These batches as they are now, but for those that Redis has forgotten, or has under the same id anew.

    What runs or ends while they are read may be counted once too often, so none looks complete too early.
    """
    with redis.pipeline(transaction=False) as pipe:
        for state in known:
            pipe.hmget(wire.batch_key(state.id), *CHANGING, *map(_since, state.pairs))
            pipe.hlen(wire.open_key(state.id))
            pipe.bitcount(wire.ended_key(state.id))
            for pair in state.pairs:
                pipe.zcard(wire.leased_key(wire.queue_name(pair, state.id)))
        replies: Any = iter(pipe.execute())
    found = [
        _refreshed(state, next(replies), next(replies), next(replies), sum(islice(replies, len(state.pairs))))
        for state in known
    ]
    return [state for state in found if state]


def _refreshed(
    before: BatchStatus, fields: Sequence[bytes | None], open: int, ended: int, running: int
) -> BatchStatus | None:
    generation, total, priority, failed, cancelled, prompt, completion, *times = fields
    cancelled_at, paused_at, collected_at, *since = times
    if generation is None or int(generation) != before.generation:
        return None
    lines, bad, dropped = int(total or 0), int(failed or 0), int(cancelled or 0)
    complete = ended >= max(lines, open + ended)
    return replace(
        before,
        priority=(priority or b"").decode("utf-8", "replace"),
        total=lines,
        submitted=open + ended,
        running=running,
        done=ended - bad - dropped,
        failed=bad,
        cancelled=dropped,
        prompt_tokens=int(prompt or 0),
        completion_tokens=int(completion or 0),
        is_cancelled=cancelled_at is not None,
        is_paused=paused_at is not None and not complete and cancelled_at is None,
        collected=float(collected_at) if complete and collected_at else None,
        waiting_since={pair: int(ms or 0) / 1000 for pair, ms in zip(before.pairs, since, strict=True)},
    )


@cache
def _since(pair: str) -> str:
    return f"waiting_since {wire.slug(pair)}"
