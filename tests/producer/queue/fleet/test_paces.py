"""Macs of several speeds: near the end of the queue, slow ones leave to faster ones what those would end sooner."""

from __future__ import annotations

import time

import pytest

from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.leases import JobQueue, Pace
from tests.producer.queue.helpers import outcome, queue
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR

SLOW, FAST, ROWS = 10.0, 50.0, 4
TOKENS = 10
"""Of the mean job."""


def pace(worker: JobQueue, speed: float, rows: int = ROWS, seconds: float = 60) -> Pace:
    return Pace(*worker.compare(speed, rows), TOKENS, seconds)


def submit(mill: Mill, *sizes: int, batch: str = "b", user: str = "") -> None:
    """Submits a line of each of these sizes in tokens."""
    info = batches.BatchInfo(batch, PAIR, "normal", len(sizes), user=user)
    bodies = [
        wire.JobBody(batch=batch, custom_id=f"{size}-{n}", pair=PAIR, prompts=("x",), line=n + 1, sampling=sampling)
        for n, size in enumerate(sizes)
        for sampling in [wire.Sampling(max_tokens=size)]
    ]
    batches.create(mill.redis, info)
    batches.submit_chunk(mill.redis, info, bodies)


@pytest.fixture
def fast(mill: Mill) -> JobQueue:
    fast = queue(mill, "fast")
    pace(fast, FAST)
    return fast


@pytest.fixture
def slow(mill: Mill) -> JobQueue:
    return queue(mill, "slow")


def test_the_last_jobs_go_to_the_faster_worker(mill: Mill, slow: JobQueue, fast: JobQueue) -> None:
    mill.submit(60)
    at = pace(slow, SLOW)
    taken = []
    while jobs := slow.claim(1, pace=at):
        taken += jobs
    assert slow.passed
    left = mill.status().queued
    assert 15 <= left <= 30  # the fast one ends 20 by the time that the slow one has ended one
    assert len(fast.claim(60, pace=pace(fast, FAST))) == left
    assert not fast.passed


def test_workers_of_one_speed_pass_nothing(mill: Mill, fast: JobQueue) -> None:
    mill.submit(3)
    twin = queue(mill, "twin")
    assert len(twin.claim(9, pace=pace(twin, FAST))) == 3


def test_the_longer_a_job_the_earlier_it_is_passed(mill: Mill, slow: JobQueue, fast: JobQueue) -> None:
    submit(mill, *[TOKENS] * 40, 5 * TOKENS, *[TOKENS] * 39)
    at = pace(slow, SLOW)
    assert len(slow.claim(80, pace=at)) == 40
    (long,) = fast.claim(1, pace=pace(fast, FAST))
    assert long.custom_id == f"{5 * TOKENS}-40"
    assert len(slow.claim(1, pace=at)) == 1


def test_a_long_job_of_one_user_keeps_no_worker_from_those_of_others(
    mill: Mill, slow: JobQueue, fast: JobQueue
) -> None:
    submit(mill, *[20 * TOKENS] * 40, batch="long", user="ann")
    submit(mill, *[TOKENS] * 40, batch="short", user="bob")
    assert [job.batch for job in slow.claim(5, pace=pace(slow, SLOW))] == ["short"] * 5


@pytest.mark.parametrize("how", ["died", "drained"])
def test_without_the_faster_worker_the_slow_one_takes_all(mill: Mill, slow: JobQueue, how: str) -> None:
    mill.submit(2)
    fast = queue(mill, "fast", lease=0.1)
    pace(fast, FAST)
    assert slow.claim(2, pace=pace(slow, SLOW)) == []
    if how == "died":
        time.sleep(0.15)
    else:
        pace(fast, FAST, rows=0)
    assert len(slow.claim(2, pace=pace(slow, SLOW))) == 2


def test_no_job_is_passed_for_longer_than_the_longest_would_take(mill: Mill, slow: JobQueue, fast: JobQueue) -> None:
    submit(mill, TOKENS, 3 * TOKENS)
    at = pace(slow, SLOW, seconds=0.1)
    assert slow.claim(1, pace=at) == []
    time.sleep(0.11)
    assert len(slow.claim(1, pace=at)) == 1
    assert slow.claim(1, pace=at) == []
    time.sleep(0.2)
    assert len(slow.claim(1, pace=at)) == 1


def test_faster_workers_that_take_nothing_keep_no_row_of_slow_ones_free(
    mill: Mill, slow: JobQueue, fast: JobQueue
) -> None:
    mill.submit(15)
    twin = queue(mill, "twin")
    at = pace(slow, SLOW, seconds=0.1)
    assert slow.claim(ROWS, pace=at) == twin.claim(ROWS, pace=at) == []
    time.sleep(0.11)
    assert len(slow.claim(ROWS, pace=at)) == len(twin.claim(ROWS, pace=at)) == ROWS
    mill.submit(1, batch="new", priority="high")  # was not there all the time
    assert {job.batch for job in slow.claim(9, pace=at)} == {"b"}
    assert slow.passed


def test_a_worker_alone_passes_nothing(mill: Mill) -> None:
    submit(mill, 1000 * TOKENS)
    lone = queue(mill, "lone")
    assert len(lone.claim(1, pace=pace(lone, 1 / 7))) == 1


def test_who_passes_a_job_passes_the_call_on(mill: Mill, slow: JobQueue, fast: JobQueue) -> None:
    mill.redis.zadd(wire.WORKERS, {"slow": time.time(), "fast": time.time()})
    mill.submit(1)
    assert slow.wait(1)
    assert slow.claim(1, pace=pace(slow, SLOW)) == []
    assert fast.wait(1)
    assert len(fast.claim(1, pace=pace(fast, FAST))) == 1


def test_nothing_waits_in_a_worker_that_others_could_run_meanwhile(mill: Mill, slow: JobQueue, fast: JobQueue) -> None:
    mill.submit(100)
    waiting = slow.claim(ROWS + 20, ahead=20, pace=pace(slow, SLOW))
    assert len(waiting) == ROWS + 20
    mill.submit(60, batch="next")
    slow.commit([outcome(job) for job in waiting])
    at = pace(slow, SLOW)
    held = slow.claim(100, ahead=100 - ROWS, pace=at)
    assert len(held) < 100 - ROWS
    assert mill.status("b").queued + mill.status("next").queued >= at.meanwhile


def test_a_large_fleet_is_judged_by_a_part_of_it(mill: Mill, slow: JobQueue) -> None:
    for n in range(300):
        pace(queue(mill, f"w-{n}"), FAST if n % 2 else SLOW)
    behind, meanwhile = slow.compare(SLOW, ROWS)
    rows = 150 * ROWS * (SLOW + FAST)
    usual = (SLOW**2 + FAST**2) / (SLOW + FAST)
    assert meanwhile == pytest.approx(rows / SLOW, rel=0.25)
    assert behind == pytest.approx(rows * (1 / SLOW - 1 / usual), rel=0.25)


def test_jobs_of_no_size_count_as_mean_ones(mill: Mill, slow: JobQueue, fast: JobQueue) -> None:
    mill.submit(60)
    for key in mill.redis.keys("rq:job:*"):
        mill.redis.hset(key, "queued", "1 0 0")
    assert len(slow.claim(60, pace=pace(slow, SLOW))) == 60 - int(pace(slow, SLOW).behind)
