"""The courier by itself: how much it fetches, and when it hands that over."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import pytest

from draftmill.producer.queue import wire
from draftmill.producer.queue.leases import Claimed, JobQueue
from draftmill.worker.courier import Courier
from draftmill.worker.host import RowSpeed
from draftmill.worker.metrics.metrics import Metrics
from draftmill.worker.spool import Spool
from tests.producer.queue.helpers import leases_of
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR

ROOM, AHEAD = 8, 2


class SlowQueue(JobQueue):
    """Tells that jobs were claimed, and notes them as starting only when it may."""

    def __init__(self, mill: Mill) -> None:
        super().__init__(mill.redis, "w", PAIR, 60)
        self.claimed, self.may = threading.Event(), threading.Event()

    def blame(self, starting: Iterable[Claimed], waiting: Iterable[Claimed] = ()) -> None:
        self.claimed.set()
        assert self.may.wait(10)
        super().blame(starting, waiting)


@pytest.fixture
def queue(mill: Mill) -> SlowQueue:
    return SlowQueue(mill)


@pytest.fixture
def courier(mill: Mill, queue: SlowQueue) -> Iterator[Courier]:
    courier = Courier(queue, Metrics(PAIR, "w", "0"), Spool(mill.spool, "w"), RowSpeed())
    courier.start()
    yield courier
    courier.abort()
    courier.join()


def test_jobs_on_their_way_count_as_taken(mill: Mill, queue: SlowQueue, courier: Courier) -> None:
    mill.submit(100)
    courier.exchange(ROOM, AHEAD)
    assert queue.claimed.wait(10)
    for _ in range(3):
        assert courier.exchange(ROOM, AHEAD) == []
    queue.may.set()
    assert courier.arrived.wait(10)
    jobs = courier.exchange(ROOM, AHEAD)
    for _ in range(20):
        threading.Event().wait(0.02)
        jobs += courier.exchange(ROOM - len(jobs), AHEAD)
    assert len(jobs) == len(courier.held()) == ROOM
    assert courier.is_alive()


def test_jobs_are_to_blame_before_the_worker_has_them(mill: Mill, queue: SlowQueue, courier: Courier) -> None:
    mill.submit(2)
    courier.exchange(ROOM, AHEAD)
    assert queue.claimed.wait(10)
    assert not courier.arrived.is_set()
    job = wire.job_id("b", "r-0")
    assert leases_of(mill, job) is None
    queue.may.set()
    assert courier.arrived.wait(10)
    assert leases_of(mill, job) == 1
