"""A batch of several pairs: each line waits, runs and ends in the queue of its pair, whatever befalls it."""

from __future__ import annotations

import orjson
import pytest
from rq import Queue

from draftmill.producer.queue import batches, ending, wire
from draftmill.producer.queue.batches import BatchInfo
from draftmill.producer.queue.leases import Claimed, JobQueue, Outcome
from tests.producer.queue.helpers import fetch, lapse, lose, outcome
from tests.worker.conftest import Mill

PAIRS = ("left", "right")
COUNT = 12
INFO = BatchInfo("b", PAIRS[0], "normal", COUNT, "mixed.jsonl", "ann", others=PAIRS[1:])


@pytest.fixture
def workers(mill: Mill) -> tuple[JobQueue, JobQueue]:
    """One of each pair; the lines of the batch take turns between them."""
    submit(mill)
    left, right = (JobQueue(mill.redis, f"w-{pair}", pair, 60) for pair in PAIRS)
    return left, right


def bodies() -> list[wire.JobBody]:
    return [
        wire.JobBody(batch="b", custom_id=f"r-{n}", pair=PAIRS[n % 2], prompts=("x",), line=n + 1) for n in range(COUNT)
    ]


def submit(mill: Mill, retry_failed: bool = False) -> batches.Submitted:
    batches.create(mill.redis, INFO)
    return batches.submit_chunk(mill.redis, INFO, bodies(), retry_failed=retry_failed)


def numbers(jobs: list[Claimed]) -> list[int]:
    return [int(job.custom_id[2:]) for job in jobs]


def length(mill: Mill, pair: str) -> int:
    return mill.redis.llen(f"rq:queue:{wire.queue_name(pair, 'b')}")  # pyright: ignore[reportReturnType]


def run_all(*workers: JobQueue) -> None:
    for w in workers:
        w.reap()
        while jobs := w.claim(100):
            w.commit([outcome(job) for job in jobs])


def test_workers_get_the_lines_of_their_pair(mill: Mill, workers: tuple[JobQueue, JobQueue]) -> None:
    left, right = workers
    assert mill.status().pairs == PAIRS
    assert submit(mill) == batches.Submitted(queued=COUNT)
    first, other = left.claim(100), right.claim(2)
    assert (numbers(first), numbers(other)) == ([0, 2, 4, 6, 8, 10], [1, 3])
    assert left.claim(100) == []
    assert right.release(other) == 2
    left.commit([outcome(job) for job in first])
    assert (mill.status().done, mill.status().queued, mill.status().complete) == (6, 6, False)
    assert numbers(right.claim(100)) == [1, 3, 5, 7, 9, 11]


def test_lost_retried_and_sick_lines_come_back_to_their_pair(mill: Mill, workers: tuple[JobQueue, JobQueue]) -> None:
    left, right = workers
    lost, tried, *rest = right.claim(100)
    for _ in range(wire.MAX_LEASES - 1):
        lose(mill, left, lost)  # a worker of the other pair takes it back
        if _ == 0:
            (lost,) = right.claim(1)
            assert numbers([lost]) == [1]
    right.commit([Outcome(tried, "retry", b"", reason="x"), *(outcome(job) for job in rest)])
    mill.redis.zadd(wire.LATER, {tried.id: 1})
    left.reap()
    assert numbers(left.claim(100)) == [0, 2, 4, 6, 8, 10]
    again = right.claim(100)
    assert numbers(again) == [3]
    right.commit([outcome(job) for job in again])
    (alone,) = right.claim(1)
    assert (numbers([alone]), alone.alone) == ([1], True)


def test_cancel_ends_the_lines_of_all_pairs(mill: Mill, workers: tuple[JobQueue, JobQueue]) -> None:
    held = [job for w in workers for job in w.claim(1)]
    assert batches.cancel(mill.redis, "b") == COUNT - 2
    assert [length(mill, pair) for pair in PAIRS] == [0, 0]
    for w, job in zip(workers, held, strict=True):
        assert [drop.why for drop in w.renew([job])] == ["cancelled"]
        assert w.commit([Outcome(job, "cancelled", b"{}")]) == [True]
    assert (mill.status().cancelled, mill.status().complete) == (COUNT, True)


def test_what_rqs_tools_and_accidents_take_is_settled(mill: Mill, workers: tuple[JobQueue, JobQueue]) -> None:
    left, right = workers
    (running,) = right.claim(1)
    fetch(mill, running.id).delete()  # leased, its hash gone
    fetch(mill, wire.job_id("b", "r-5")).delete()
    fetch(mill, wire.job_id("b", "r-2")).cancel()
    alone = wire.job_id("b", "r-7")
    mill.redis.lrem(f"rq:queue:{wire.queue_name('right', 'b')}", 1, alone)
    mill.redis.rpush(wire.alone_key("right"), alone)
    mill.redis.sadd("draftmill:aside:b", alone)
    fetch(mill, alone).delete()
    mill.redis.lpop(f"rq:queue:{wire.queue_name('right', 'b')}", 2)  # as a worker of RQ's own does
    lapse(mill, running)
    for _ in range(2):  # what the first look takes back, the second one runs
        run_all(left, right)
    state = mill.status()
    assert (state.done, state.cancelled, state.complete) == (COUNT - 4, 4, True)
    lines = {line["custom_id"]: line for line in map(orjson.loads, (r.line for r in batches.results(mill.redis, "b")))}
    assert len(lines) == COUNT
    assert {name for name, line in lines.items() if line.get("error")} == {"r-1", "r-5", "r-2", "r-7"}


def test_rq_shows_both_queues_and_nothing_is_left_of_a_batch(mill: Mill, workers: tuple[JobQueue, JobQueue]) -> None:
    left, right = workers
    queues = [
        Queue(wire.queue_name(pair, "b"), connection=mill.redis, serializer=wire.JsonSerializer) for pair in PAIRS
    ]
    assert [queue.count for queue in queues] == [6, 6]
    (job,) = right.claim(1)
    assert [queue.started_job_registry.count for queue in queues] == [0, 1]
    right.commit([Outcome(job, "failed", b'{"error": {}}', reason="x")])
    assert [queue.failed_job_registry.count for queue in queues] == [0, 1]
    assert submit(mill, retry_failed=True).retried == 1
    run_all(left, right)
    results = list(batches.results(mill.redis, "b"))
    batches.acknowledge(mill.redis, "b", results)
    assert [queue.finished_job_registry.count for queue in queues] == [0, 0]
    assert sorted(result.n for result in results) == list(range(1, COUNT + 1))
    assert batches.forget(mill.redis, "b")
    assert list(mill.redis.scan_iter("*:b")) == list(mill.redis.scan_iter("rq:job:*")) == []
    assert mill.redis.scard("rq:queues") == 0


def test_lines_that_a_file_has_leave_their_queues(mill: Mill, workers: tuple[JobQueue, JobQueue]) -> None:
    there = [(found, False) for found in ending.open_jobs(mill.redis, "b") if found.n <= 4]
    ending.drop(mill.redis, "b", there)
    assert [length(mill, pair) for pair in PAIRS] == [4, 4]
    run_all(*workers)
    assert (mill.status().complete, mill.redis.xlen(wire.results_key("b"))) == (True, COUNT - 4)


def test_another_priority_holds_for_all_pairs(mill: Mill, workers: tuple[JobQueue, JobQueue]) -> None:
    for pair in PAIRS:
        info = BatchInfo(f"rival-{pair}", pair, "normal", 40)
        batches.create(mill.redis, info)
        lines = [
            wire.JobBody(batch=info.id, custom_id=f"{n}", pair=pair, prompts=("x",), line=n + 1) for n in range(40)
        ]
        batches.submit_chunk(mill.redis, info, lines)
    batches.create(mill.redis, BatchInfo("b", "left", "high", COUNT, others=("right",)))
    for w in workers:
        assert sum(job.batch == "b" for job in w.claim(8)) >= 5
