"""The states of all batches for those who look again and again, without reading all of them each time."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import redis as redis_py

from ...queue import batches
from ...queue.batches import BatchStatus

MOST_OPEN, MOST_ENDED = 250, 100
"""Batches that a look reads again: of those that are open, and of those that have ended, whose failed lines may have
been queued anew."""
ROUND = 30
"""Looks until a few batches that have ended are read again."""
LATEST, LISTING = 100, 10
"""New batches are looked for among so many that say they are the newest, and among all in each tenth look: the clocks
of those who submit differ, and to list thousands of names takes longer than all else."""


class BatchStates:
    """What was last read of each batch. A look reads new batches and some of the others, the longest unread first: up
    to MOST_OPEN open batches are read at each look. Not for several threads at a time.
    """

    def __init__(self, redis: redis_py.Redis) -> None:
        self._redis = redis
        self.open: dict[str, BatchStatus] = {}
        self.ended: dict[str, BatchStatus] = {}
        self._names: list[str] = []
        self._looks = 0

    def look(self, shown: Iterable[str] = ()) -> list[str]:
        """Reads anew, those that are `shown` in any case, and returns the ids of all, newest first. Raises RedisError.

        Of these `open` and `ended` have the states, in the order in which they were read.
        """
        new = self._list()
        most_ended = min(MOST_ENDED, -(-len(self.ended) // ROUND))
        unread = [*new, *shown, *islice(self.open, MOST_OPEN), *islice(self.ended, most_ended)]
        for name in unread:
            self._drop(name)
        for state in batches.statuses(self._redis, list(dict.fromkeys(unread))):
            (self.ended if state.complete else self.open)[state.id] = state
        self._looks += 1
        self._names = [name for name in self._names if name in self.open or name in self.ended]
        return self._names

    def _list(self) -> list[str]:
        """Brings the names up to date, and returns those of which nothing is known yet."""
        lists_all = self._looks % LISTING == 0
        listed = batches.newest(self._redis, None if lists_all else LATEST)
        new = [name for name in listed if name not in self.open and name not in self.ended]
        if lists_all:
            self._names = listed
            for forgotten in (self.open.keys() | self.ended.keys()).difference(listed):
                self._drop(forgotten)
        else:
            self._names = [*new, *self._names]
        return new

    def _drop(self, name: str) -> None:
        self.open.pop(name, None)
        self.ended.pop(name, None)
