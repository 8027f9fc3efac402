"""Clients of a primary that Redis Sentinel names: they ask it again whenever the primary may be another one."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

import redis
import redis.exceptions as rx
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from ..errors import SENTINEL_REFUSES
from ..urls import SENTINEL, SENTINEL_OPTIONS

PORT = 26379
SECONDS = 2.0
"""How long a Sentinel may take to answer before the next one is asked."""
MOVED = ("READONLY", "MASTERDOWN", "UNBLOCKED", "NOREPLICAS")
"""Answers of a server that is no primary, or is not to be one for long; a script of Redis 6.2 has them in its error."""


@dataclass(frozen=True)
class Place:
    """What a URL with Sentinels says: where they are, the name of the primary, and how to connect to each of them."""

    sentinels: tuple[tuple[str, int], ...]
    service: str
    settings: dict[str, Any]
    to_sentinels: dict[str, Any]
    secure: bool


def place(url: str) -> Place:
    """What a URL says; raises ValueError if it is none of this kind."""
    found = SENTINEL.fullmatch(url)
    if not found or not found["service"]:
        raise ValueError("no URL of a Sentinel")
    query = parse_qsl((found["query"] or "?")[1:], keep_blank_values=True)
    own = {name.removeprefix("sentinel_"): value for name, value in query if name in SENTINEL_OPTIONS}
    rest = urlencode([(name, value) for name, value in query if name not in SENTINEL_OPTIONS])
    secure = found["scheme"].startswith("rediss")
    login = "" if found["login"] is None else f"{found['login']}@"
    settings = parse_url(f"{'rediss' if secure else 'redis'}://{login}sentinel{found['db'] or ''}?{rest}")
    settings = {name: value for name, value in settings.items() if name not in ("host", "connection_class")}
    tls = {name: value for name, value in settings.items() if name.startswith("ssl_")} if secure else {}
    sentinels = tuple(_address(text) for text in found["hosts"].split(","))
    return Place(sentinels, found["service"], settings, {**tls, "ssl": secure, **own}, secure)


def _address(text: str) -> tuple[str, int]:
    host, port = re.fullmatch(r"(\[.*\]|[^:]*)(?::(\d+))?", text).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return host.strip("[]"), int(port or PORT)


def client(url: str, retry: Retry, seconds: float) -> redis.Redis:
    """A client of the primary of such a URL. A command may take so many seconds; it connects when it is first used."""
    about = place(url)
    timeouts = {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    asked = {"socket_timeout": SECONDS, "socket_connect_timeout": SECONDS, "retry": Retry(NoBackoff(), 0)}
    finder = Finder(about.sentinels, sentinel_kwargs=asked | about.to_sentinels)
    settings = {**timeouts, "health_check_interval": 30, **about.settings, "retry": retry}
    kind = SecurePrimary if about.secure else Primary
    return finder.master_for(about.service, connection_class=kind, **settings)


def sibling(pool: SentinelConnectionPool, settings: dict[str, Any]) -> redis.Redis:
    """Another client of the same primary, whose connections have these settings besides."""
    known = {name: value for name, value in pool.connection_kwargs.items() if name != "connection_pool"}
    kind = pool.connection_class
    new = SentinelConnectionPool(pool.service_name, pool.sentinel_manager, connection_class=kind, **known | settings)
    return redis.Redis.from_pool(new)


def identity(pool: SentinelConnectionPool) -> str:
    """What tells this farm's primary from those of others, whichever server it is."""
    asked = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    hosts = sorted(f"{each['host']}:{each['port']}" for each in asked)
    return "|".join((*hosts, pool.service_name, str(pool.connection_kwargs.get("db", 0))))


class Finder(Sentinel):
    """Asks one Sentinel after the other. Threads may share it: they take turns, as each puts the one that answered
    first.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._turn = threading.Lock()

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """The primary's address; raises ConnectionError in words that name no password."""
        with self._turn:
            try:
                return super().discover_master(service_name)
            except MasterNotFoundError as error:
                raise self._explained(str(error), service_name) from None

    def _explained(self, text: str, service: str) -> rx.ConnectionError:
        """`text` has an error for each Sentinel that did not answer."""
        errors = re.findall(r" - \S*?(\w+Error)\b", text)
        if len(errors) < len(self.sentinels):
            return MasterNotFoundError(f"its Sentinels name no primary {service!r} that is up")
        if "AuthenticationError" in errors:
            return rx.AuthenticationError(SENTINEL_REFUSES)
        return MasterNotFoundError("none of its Sentinels answers")


class Primary(SentinelManagedConnection):
    """A connection to the primary. It ends when that turns out to be no primary (any more), so that the next command
    looks for the new one.
    """

    def on_connect_check_health(self, check_health: bool = True) -> None:
        """A Sentinel that has not heard of a fail-over yet names a server that is a replica by now."""
        super().on_connect_check_health(check_health)
        self.send_command("INFO", "replication", check_health=False)
        if b"role:master" not in self.read_response(disable_decoding=True):
            raise rx.ConnectionError("it is a replica")

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().read_response(*arguments, **options)
        except rx.ResponseError as error:
            if not (isinstance(error, rx.MasterDownError) or any(word in str(error) for word in MOVED)):
                raise
            self.disconnect()
            raise rx.ConnectionError("it is no primary with its replicas any more") from None


class SecurePrimary(Primary, SentinelManagedSSLConnection):
    """The same over TLS."""
