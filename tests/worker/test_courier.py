"""The courier and the witness by themselves: what they fetch and hand over, and what Redis knows of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import redis as redis_py

from draftmill.producer.queue import wire
from draftmill.producer.queue.leases import Claimed, JobQueue
from draftmill.worker.courier import Courier
from draftmill.worker.host import RowSpeed
from draftmill.worker.jobs import Running
from draftmill.worker.metrics.metrics import Metrics
from draftmill.worker.spool import Spool
from draftmill.worker.witness import PATIENCE, Witness
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


def waiting_jobs(mill: Mill, count: int) -> list[Running]:
    """Jobs that a worker has, none of them in a row."""
    mill.submit(count)
    work: Any = None  # what they ask for is of no interest here
    return [Running(job, work, work, 0.0, work) for job in JobQueue(mill.redis, "w", PAIR, 60).claim(count)]


def witness_of(queue: JobQueue) -> Witness:
    witness = Witness(queue)
    witness.start()
    return witness


def soon(true: Callable[[], bool]) -> bool:
    """Whether it becomes so."""
    deadline = time.monotonic() + 10
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_the_witness_keeps_nobody_but_who_starts(mill: Mill, queue: SlowQueue) -> None:
    first, second = jobs = waiting_jobs(mill, 2)
    witness = witness_of(queue)
    first.in_row, first.counts = True, False
    assert not witness.keep_up(jobs)
    assert queue.claimed.wait(10)
    assert leases_of(mill, first.job.id) is None
    assert not witness.keep_up(jobs)
    queue.may.set()
    witness.wait()
    assert witness.keep_up(jobs)
    assert (first.counts, second.counts) == (True, False)
    assert (leases_of(mill, first.job.id), leases_of(mill, second.job.id)) == (1, None)


def test_a_redis_that_is_slow_holds_up_for_a_moment(mill: Mill, queue: SlowQueue) -> None:
    [job] = jobs = waiting_jobs(mill, 1)
    witness = witness_of(queue)
    job.in_row, job.counts, before = True, None, time.monotonic()
    assert not witness.keep_up(jobs)
    assert soon(lambda: witness.keep_up(jobs))
    assert PATIENCE <= time.monotonic() - before < 2 * PATIENCE
    assert job.counts is None
    queue.may.set()
    assert soon(lambda: witness.keep_up(jobs) and job.counts is True)


class FailingQueue(JobQueue):
    """Fails to note anything, for the first time."""

    failed = False

    def blame(self, starting: Iterable[Claimed], waiting: Iterable[Claimed] = ()) -> None:
        if not self.failed:
            self.failed = True
            raise redis_py.ConnectionError("away")
        super().blame(starting, waiting)


def test_what_redis_was_not_told_it_is_told_again(mill: Mill) -> None:
    [job] = jobs = waiting_jobs(mill, 1)
    witness = witness_of(FailingQueue(mill.redis, "w", PAIR, 60))
    job.in_row, job.counts = True, False
    assert not witness.keep_up(jobs)
    witness.wait()
    assert witness.keep_up(jobs)
    assert job.counts is None
    witness.wait()
    assert witness.keep_up(jobs)
    assert job.counts is True


def test_an_answer_about_another_lease_tells_nothing(mill: Mill, queue: SlowQueue) -> None:
    [job, other] = waiting_jobs(mill, 2)
    witness = witness_of(queue)
    job.in_row, job.counts = True, False
    assert not witness.keep_up([job])
    job.job, job.counts = other.job, None
    queue.may.set()
    witness.wait()
    assert not witness.keep_up([job])
    assert job.counts is None
