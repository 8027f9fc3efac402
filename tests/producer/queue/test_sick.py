"""Jobs that lose leases: which are to blame, and how those on their last lease run without stopping others."""

from __future__ import annotations

import time

import pytest

from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.leases import JobQueue
from tests.producer.queue.helpers import lapse, leases_of, lose, outcome, queue
from tests.worker.conftest import Mill

LAST = wire.MAX_LEASES - 1


def sicken(mill: Mill, count: int, batch: str = "sick", user: str = "") -> None:
    """Jobs that lost all leases but one."""
    mill.submit(count, batch=batch, user=user)
    w = queue(mill, "victim")
    for _ in range(LAST):
        jobs = w.claim(count)
        assert len(jobs) == count
        lose(mill, w, *jobs)


def names(w: JobQueue, n: int, held: int = 0) -> list[tuple[str, bool]]:
    return [(job.batch, job.alone) for job in w.claim(n, held=held)]


def test_a_job_on_its_last_lease_runs_alone_and_stops_nobody(mill: Mill) -> None:
    sicken(mill, 1)
    mill.submit(5)
    w, v = queue(mill, "w"), queue(mill, "v")
    assert names(w, 2) == [("b", False)] * 2
    assert names(w, 2, held=2) == [("b", False)] * 2
    assert names(v, 3, held=0) == [("b", False)]
    assert names(w, 3, held=4) == []
    assert names(v, 3, held=0) == [("sick", True)]
    assert names(v, 3, held=0) == []


def test_under_a_load_without_end_one_worker_drains_for_it_now_and_then(mill: Mill) -> None:
    lease = 0.1
    sicken(mill, 2)
    mill.submit(500)
    w, v = queue(mill, "w", lease), queue(mill, "v", lease)
    assert len(w.claim(4)) == 4
    time.sleep(6 * lease)
    assert names(w, 4, held=4) == []
    assert len(v.claim(4)) == 4
    assert len(v.claim(4, held=4)) == 4
    assert names(w, 4, held=1) == []
    assert names(w, 4) == [("sick", True)]
    assert len(w.claim(4)) == 4
    assert len(v.claim(4, held=4)) == 4
    time.sleep(6 * lease)
    assert names(v, 4, held=4) == []
    assert names(v, 4) == [("sick", True)]


def test_a_job_is_not_to_blame_while_it_only_waits_in_a_worker(mill: Mill) -> None:
    mill.submit(3)
    w = queue(mill, "w")
    for _ in range(wire.MAX_LEASES + 2):
        jobs = w.claim(3)
        assert [job.alone for job in jobs] == [False] * 3
        w.blame(jobs)
        w.blame([], jobs)
        lapse(mill, *jobs)
        assert w.reap() == (3, 0, 0)
    first, *others = w.claim(3)
    w.blame([first])
    lapse(mill, first)
    w.reap()
    w.release(others)
    assert leases_of(mill, first.id) == 1


def test_a_lease_counts_once_however_often_a_worker_says_so(mill: Mill) -> None:
    mill.submit(1)
    w = queue(mill, "w")
    (job,) = w.claim(1)
    w.blame([job])
    w.blame([job], [])
    assert leases_of(mill, job.id) == 1
    w.release([job])
    w.blame([job])
    assert leases_of(mill, job.id) == 0


@pytest.mark.parametrize("deed", ["cancel", "forget RQ's hash"])
def test_what_must_run_alone_ends_as_other_jobs_do(mill: Mill, deed: str) -> None:
    sicken(mill, 2)
    w = queue(mill, "w")
    if deed == "cancel":
        assert batches.cancel(mill.redis, "sick") == 2
    else:
        mill.redis.delete(f"rq:job:{wire.job_id('sick', 'r-0')}")
        (job,) = w.claim(4)
        w.commit([outcome(job)])
    assert w.claim(4) == []
    w.reap()
    assert mill.status("sick").complete
    assert len(mill.lines("sick")) == 2
    assert mill.redis.keys("draftmill:a[ls]*:*") == []


def test_a_user_s_limit_holds_for_what_must_run_alone(mill: Mill) -> None:
    sicken(mill, 1, user="ann")
    mill.submit(1, user="ann")
    mill.redis.hset(wire.LIMITS, "ann", 1)
    w, v = queue(mill, "w"), queue(mill, "v")
    (job,) = w.claim(4)
    assert v.claim(4) == []
    w.commit([outcome(job)])
    assert names(v, 4) == [("sick", True)]


def test_a_worker_that_dies_blames_what_was_in_its_rows_only(mill: Mill) -> None:
    mill.submit(8, tokens=500, prompt="say it")
    worker = mill.start(rows=2, round_seconds=0.02, lease=2)
    mill.wait(lambda status: status.running >= 4)
    time.sleep(1)
    worker.kill()
    counted = [leases_of(mill, wire.job_id("b", f"r-{n}")) for n in range(8)]
    assert counted.count(1) == 2


def test_a_job_that_kills_its_worker_at_once_is_to_blame(mill: Mill) -> None:
    mill.submit(1, prompt="poison")
    worker = mill.start(lease=2)
    assert worker.wait(timeout=20)
    assert leases_of(mill, wire.job_id("b", "r-0")) == 1
