"""Fixtures of the worker's tests: a server of their own, and a client of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py

from tests.redis_server import RedisServer


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A fresh server in a short path of its own: a Unix socket's path may have about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[redis_py.Redis]:
    with redis_server.connect() as client:
        yield client
