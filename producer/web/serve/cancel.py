"""Cancels a batch in Redis, as far as this server's Redis user may."""

from __future__ import annotations

import redis as redis_py
import redis.exceptions as rx

from ...queue import batches
from ...queue.errors import denied


def cancel(redis: redis_py.Redis, batch: str) -> None:
    """Ends what is queued; workers end what runs, and all of it where this user may not end lines."""
    try:
        batches.cancel(redis, batch)
    except rx.ResponseError as error:
        if not denied(error):
            raise
