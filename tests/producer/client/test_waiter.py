"""Batches that wait together: each is woken for what concerns it, and they cost Redis a call or two a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

import pytest

from draftmill.producer.client import waiter
from draftmill.producer.client.waiter import Waiter, Waiting
from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.orders import steer
from tests.producer.queue.helpers import outcome, queue
from tests.worker.conftest import Mill, mill, redis, redis_server

__all__ = ["mill", "redis", "redis_server"]

HOLDER = "token place"


class Waiters:
    """Who was woken, and who is urgent."""

    def __init__(self, mill: Mill) -> None:
        self.woken: SimpleQueue[str] = SimpleQueue()
        self.urgent: set[str] = set()
        self.waiter = Waiter(mill.redis, self.woken.put, self.urgent.__contains__)
        self.mill = mill

    def wait_for(self, *names: str, after: str = "0-0", until: float = float("inf")) -> None:
        for name in names:
            assert batches.hold(self.mill.redis, name, HOLDER, 30) is None
            self.waiter.add(Waiting(name, after, HOLDER, until))

    def next(self, seconds: float = 5) -> str | None:
        try:
            return self.woken.get(timeout=seconds)
        except Empty:
            return None


@pytest.fixture
def waiters(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> Iterator[Waiters]:
    monkeypatch.setattr(waiter, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(waiter, "RENEW_SECONDS", 0.5)
    with running(Waiters(mill)) as found:
        yield found


@contextmanager
def running(waiters: Waiters) -> Iterator[Waiters]:
    waiters.waiter.start()
    yield waiters
    waiters.waiter.stop()
    assert not waiters.waiter.is_alive()


def test_each_is_woken_for_its_own_results_and_once(waiters: Waiters, mill: Mill) -> None:
    for name in ("a", "b", "c"):
        mill.submit(2, batch=name)
    waiters.wait_for("a", "b", "c")
    worker = queue(mill, "w")
    for job in worker.claim(2):
        worker.commit([outcome(job)])
    first = waiters.next()
    assert first in ("a", "b", "c")
    ended = [name for name in ("a", "b", "c") if mill.status(name).done]
    found = {first} | {waiters.next() for _ in ended[1:]}
    assert found == set(ended)
    assert waiters.next(1) is None
    last = batches.read(mill.redis, ended[0])[-1].entry
    waiters.wait_for(ended[0], after=last)  # behind what it has read
    assert waiters.next(1) is None
    for job in worker.claim(4):
        worker.commit([outcome(job)])
    assert {waiters.next() for _ in range(3)} >= {"a", "b", "c"} - set(ended)


def test_what_else_wakes(waiters: Waiters, mill: Mill) -> None:
    names = ("lost", "cancelled", "paused", "taken", "urgent", "due", "calm")
    for name in names:
        mill.submit(1, batch=name)
    queue(mill, "w").claim(7)  # so that cancelling ends none at once
    waiters.wait_for(*(set(names) - {"due"}))
    assert waiters.next(1) is None
    batches.cancel(mill.redis, "cancelled")
    assert waiters.next() == "cancelled"
    steer.pause(mill.redis, "paused")
    assert waiters.next() == "paused"
    waiters.waiter.add(Waiting("paused", holder=HOLDER, is_paused=True))
    assert waiters.next(1) is None
    steer.resume(mill.redis, "paused")
    assert waiters.next() == "paused"
    mill.redis.delete(wire.batch_key("lost"))
    assert waiters.next() == "lost"
    while waiters.woken.empty():  # it may be renewed just now
        mill.redis.set(wire.holder_key("taken"), "other place")
        time.sleep(0.05)
    assert waiters.next() == "taken"
    assert mill.redis.get(wire.holder_key("taken")) == b"other place"
    waiters.urgent.add("urgent")
    assert waiters.next() == "urgent"
    waiters.wait_for("due", until=time.monotonic() + 1)
    assert waiters.next() == "due"
    assert waiters.next(1) is None
    mill.server.kill()
    assert waiters.next() == "calm"


def test_the_right_to_collect_outlives_a_wait(waiters: Waiters, mill: Mill) -> None:
    mill.submit(1, batch="a")
    waiters.wait_for("a")
    mill.redis.pexpire(wire.holder_key("a"), 1500)
    time.sleep(2)
    assert mill.redis.pttl(wire.holder_key("a")) > 20_000
    assert batches.hold(mill.redis, "a", "another elsewhere", 30) == "place"
    mill.redis.delete(wire.holder_key("a"))
    assert waiters.next() == "a"
    assert not mill.redis.exists(wire.holder_key("a"))


def test_a_hundred_cost_a_few_calls(mill: Mill) -> None:
    names = [f"b-{n}" for n in range(100)]
    for name in names:
        mill.submit(1, batch=name)
    with running(Waiters(mill)) as waiters:
        waiters.wait_for(*names)
        time.sleep(1)
        before = mill.redis.info("stats")["total_commands_processed"]
        time.sleep(3)
        after = mill.redis.info("stats")["total_commands_processed"]
        looks, asked = 1, 100  # one look at all of them may fall into it
        assert after - before < looks * asked + 20
        assert waiters.woken.empty()
