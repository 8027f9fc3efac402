"""Fixtures of the queue's tests: those of the worker's, which claims from it."""

from tests.worker.conftest import mill, redis, redis_server

__all__ = ["mill", "redis", "redis_server"]
