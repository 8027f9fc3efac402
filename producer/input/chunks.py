"""Cuts a dataset's jobs into chunks, and knows each of them again: what is submitted must be what was surveyed."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from ..queue.wire import JobBody

CHUNK = 500
"""The most jobs of a chunk."""
CHUNK_BYTES = 4 * 2**20
"""A chunk ends with the job that makes it as large as this: neither we nor Redis hold hundreds of jobs of megabytes."""


class Chunk(NamedTuple):
    """Jobs that are submitted together, and how many bytes they have as JSON."""

    jobs: list[JobBody]
    size: int


class Cutter:
    """Counts jobs and says where a chunk ends.

    Each CHUNK jobs are a group. `groups` are the digests of those that are over; small jobs make one chunk of a group,
    and large ones several.
    """

    def __init__(self) -> None:
        self.groups: list[bytes] = []
        self.size = 0
        self._digest, self._jobs, self._chunk = hashlib.sha256(), 0, 0

    def add(self, job: bytes) -> bytes | None:
        """Counts a job; the digest of its group so far if a chunk ends with it."""
        self._digest.update(job)
        self._jobs += 1
        self._chunk += len(job)
        self.size += len(job)
        if self._jobs == CHUNK:
            return self.end()
        if self._chunk < CHUNK_BYTES:
            return None
        self._chunk = 0
        return self._digest.copy().digest()

    def end(self) -> bytes | None:
        """Ends the last group, if one has begun, and returns its digest."""
        if not self._jobs:
            return None
        self.groups.append(self._digest.digest())
        self._digest, self._jobs, self._chunk = hashlib.sha256(), 0, 0
        return self.groups[-1]
