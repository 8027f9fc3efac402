"""Outlives a Redis that is away for minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

import redis as redis_py
import redis.exceptions as rx

from ..queue.connect import is_private, start_private
from ..queue.errors import UserError, explain_redis

AWAY_SECONDS = 600.0
"""How long Redis may be away before a command gives up."""
PAUSE_SECONDS = 1.0
"""Between two tries."""
REFUSALS = (rx.AuthenticationError, rx.AuthorizationError, rx.AuthenticationWrongNumberOfArgsError)
"""What redis-py counts among failing connections, and what does not pass."""

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


class Patience:
    """Calls what asks Redis, again and again while Redis is away; `outages` counts how often it was.

    Says once that it waits, by `say`. A private server that died is started again. After `seconds` the error is raised.
    """

    def __init__(
        self, redis: redis_py.Redis, say: Callable[[str], object] = lambda _: None, seconds: float = AWAY_SECONDS
    ) -> None:
        self.outages = 0
        self.is_away = False
        self._say = say
        self._redis, self._seconds = redis, seconds

    def __call__(
        self, call: Callable[Parameters, Answer], *arguments: Parameters.args, **options: Parameters.kwargs
    ) -> Answer:
        since: float | None = None
        while True:
            try:
                answer = call(*arguments, **options)
            except (rx.ConnectionError, rx.TimeoutError) as error:
                now = time.monotonic()
                if isinstance(error, REFUSALS) or now - (since or now) >= self._seconds:
                    raise
                if since is None:
                    since, self.is_away = now, True
                    self.outages += 1
                    self._say(f"{explain_redis(error, 'Redis').message.partition(';')[0]}; waiting for it")
                if is_private(self._redis):
                    with suppress(UserError):
                        start_private()
                time.sleep(PAUSE_SECONDS)
            else:
                if since is not None:
                    self.is_away = False
                    self._say("Redis is back")
                return answer


def impatient(redis: redis_py.Redis) -> Patience:
    """For those who have a patience of their own."""
    return Patience(redis, seconds=0)
