"""Tells a receiver of each batch of a server that has ended, until it was told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from ..client.hook import Event, Hook, Untold
from ..queue.errors import UserError

LOOK_SECONDS = 1.0
"""Between two looks for batches that have ended."""
LONGEST_SECONDS = 600.0
"""Between two tries; each waits twice as long as the one before."""


class Notifier(threading.Thread):
    """Tells `hook` the events that `pending` gives by the ids of their batches, and then calls `told` with the id.

    What a server was killed before it noted is told again by the next one. Says by `say` that something could not be
    told, once for each batch.
    """

    def __init__(
        self,
        hook: Hook,
        pending: Callable[[], Mapping[str, Event]],
        told: Callable[[str], object],
        say: Callable[[str], object],
    ) -> None:
        super().__init__(name="draftmill-notifier", daemon=True)
        self._hook, self._pending, self._told, self._say = hook, pending, told, say
        self._stopping = threading.Event()
        self._next: dict[str, tuple[float, float]] = {}

    def run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            for id, event in self._pending().items():
                if not self._stopping.is_set():
                    self._try(id, event)

    def stop(self) -> None:
        """Lets it end; what it is telling just now may be told again by the next server."""
        self._stopping.set()

    def _try(self, id: str, event: Event) -> None:
        due, pause = self._next.get(id, (0.0, LOOK_SECONDS))
        if time.monotonic() < due:
            return
        try:
            self._hook.tell(event)
            self._told(id)
        except (Untold, OSError, UserError) as error:  # of the receiver, or of the disk that is to note it
            if id not in self._next:
                self._say(f"{id}: cannot notify {self._hook.name}: {error}; trying again")
            self._next[id] = time.monotonic() + pause, min(2 * pause, LONGEST_SECONDS)
        else:
            self._next.pop(id, None)
