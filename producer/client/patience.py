"""Outlives a Redis that is away for minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

import redis as redis_py
import redis.exceptions as rx

from ..queue.connect import is_private, start_private, without_retries
from ..queue.errors import UserError, explain_redis

AWAY_SECONDS = 600.0
"""How long Redis may be away before a command gives up."""
QUIET_SECONDS = 2.0
"""How long it may be away without a word."""
PAUSE_SECONDS = 0.5
"""Between two tries."""
REFUSALS = (rx.AuthenticationError, rx.AuthorizationError, rx.AuthenticationWrongNumberOfArgsError)
"""What redis-py counts among failing connections, and what does not pass."""

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


class Patience:
    """Calls what asks Redis, by the client `redis`, again and again while Redis is away.

    Says by `say` that it waits, unless that is short. A private server that died is started again. After `seconds` the
    error is raised. It pauses by `sleep`, which may raise something to end that early.
    """

    def __init__(
        self,
        redis: redis_py.Redis,
        say: Callable[[str], object] = lambda _: None,
        seconds: float = AWAY_SECONDS,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.redis = without_retries(redis, self._connected)
        self.is_away = False
        self._connections = 0
        self._say, self._seconds, self._sleep = say, seconds, sleep

    @property
    def outages(self) -> int:
        """How often the connection was lost, however shortly: Redis may have died, and lost its last second."""
        return max(0, self._connections - 1)

    def close(self) -> None:
        """Gives its connections back, where the program lives on."""
        self.redis.connection_pool.disconnect()

    def _connected(self) -> None:
        self._connections += 1

    def __call__(
        self, call: Callable[Parameters, Answer], *arguments: Parameters.args, **options: Parameters.kwargs
    ) -> Answer:
        since, said = 0.0, False
        while True:
            try:
                answer = call(*arguments, **options)
            except (rx.ConnectionError, rx.TimeoutError) as error:
                now = time.monotonic()
                if not self.is_away:
                    self.is_away, since = True, now
                    if is_private(self.redis):
                        self._say("the private Redis has ended; starting it again")
                if isinstance(error, REFUSALS) or now - since >= self._seconds:
                    raise
                if not said and now - since > QUIET_SECONDS:
                    said = True
                    self._say(f"{explain_redis(error, 'Redis').message.partition(';')[0]}; waiting for it")
                if is_private(self.redis):
                    with suppress(UserError):
                        start_private()
                self._sleep(PAUSE_SECONDS)
            else:
                self.is_away = False
                if said:
                    self._say("Redis is back")
                return answer


def impatient(redis: redis_py.Redis) -> Patience:
    """For those who have a patience of their own."""
    return Patience(redis, seconds=0)
