"""Fixtures of the samples' tests."""

from tests.producer.conftest import redis, redis_server

__all__ = ["redis", "redis_server"]
