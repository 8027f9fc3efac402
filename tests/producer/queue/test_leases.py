"""The scripts by themselves: who may claim, commit and requeue, and what is recorded."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import pytest
import redis as redis_py
from rq import Queue
from rq.job import JobStatus
from rq.registry import StartedJobRegistry

from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.leases import Claimed, Outcome
from tests.producer.queue.helpers import fetch, lapse, outcome, queue
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR

QUEUE = wire.queue_name(PAIR, "b")


def again(job: Claimed) -> Outcome:
    return Outcome(job, "retry", b"", reason="the engine failed")


def test_submitting_again_sends_only_what_has_no_outcome(mill: Mill) -> None:
    assert mill.submit(5) == batches.Submitted(5, 0, 0)
    first = queue(mill, "w").claim(2)
    queue(mill, "w").commit([outcome(first[0])])
    assert mill.submit(7) == batches.Submitted(new=2, queued=4, done=1)
    assert mill.redis.llen(f"rq:queue:{QUEUE}") == 5
    status = mill.status()
    assert (status.total, status.submitted, status.queued, status.running, status.done) == (7, 7, 5, 1, 1)


def test_a_failure_of_the_engine_is_tried_again_later_and_thrice_at_most(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draftmill.producer.queue.leases.RETRY_SECONDS", 0.05)
    mill.submit(1)
    w = queue(mill, "w")
    for wait in (0.05, 0.2):
        (job,) = w.claim(1)
        assert w.commit([again(job)]) == [True]
        assert fetch(mill, job.id).get_status() == JobStatus.SCHEDULED
        w.reap()
        assert w.claim(1) == []
        time.sleep(wait + 0.01)
        w.reap()
    (job,) = w.claim(1)
    assert job.alone
    assert w.commit([again(job)]) == [True]
    assert w.commit([again(job)]) == [False]
    assert mill.lines()["r-0"]["error"] == {"code": "engine_failed", "message": "the engine failed"}
    assert (mill.status().failed, mill.status().running) == (1, 0)


def test_a_result_that_redis_refuses_leaves_its_job_as_it_was(mill: Mill) -> None:
    mill.submit(1)
    w, results = queue(mill, "w"), wire.results_key("b")
    (job,) = w.claim(1)
    mill.redis.set(results, "of another type")
    assert isinstance(w.commit([outcome(job)])[0], redis_py.ResponseError)
    assert w.leases() == [(job.id, job.token)]
    w.release([job])
    mill.redis.delete(results)
    (again,) = w.claim(1)
    assert again.data == job.data
    assert w.commit([outcome(again)]) == [True]


def test_what_waits_for_its_next_try_is_cancelled_with_its_batch(mill: Mill) -> None:
    mill.submit(3)
    w = queue(mill, "w")
    w.commit([again(job) for job in w.claim(2)])
    assert batches.cancel(mill.redis, "b") == 3
    assert mill.status().complete
    assert mill.redis.exists(wire.LATER, wire.leased_key(QUEUE), "draftmill:aside:b") == 0


def test_a_batch_cancelled_while_it_is_submitted_is_complete(mill: Mill) -> None:
    mill.submit(3)
    mill.redis.hset(wire.batch_key("b"), "total", 1000)
    batches.cancel(mill.redis, "b")
    assert mill.status().complete
    assert mill.redis.ttl(wire.batch_key("b")) > 0


def test_acknowledged_results_leave_the_batch_s_record_only(mill: Mill) -> None:
    mill.submit(2500)
    w = queue(mill, "w")
    while jobs := w.claim(500):
        w.commit([outcome(job) for job in jobs])
    found = list(batches.results(mill.redis, "b"))
    batches.acknowledge(mill.redis, "b", found[:1200])
    assert len(list(batches.results(mill.redis, "b"))) == 1300
    assert mill.status().collected is None
    for _ in range(2):
        batches.acknowledge(mill.redis, "b", found)
    w.reap()
    record = {b"batch:b", b"batches", b"ended:b", b"handed:b", b"generation", b"spent"}
    assert set(mill.redis.keys()) == {b"draftmill:" + name for name in record} | {b"rq:queues"}
    assert sum(mill.redis.memory_usage(wire.ended_key("b")) or 0 for _ in "b") < 1000
    assert (mill.status().done, mill.status().collected is not None) == (2500, True)
    assert batches.forget(mill.redis, "b")
    assert set(mill.redis.keys()) == {b"draftmill:generation", b"draftmill:spent"}
    assert mill.submit(1) == batches.Submitted(1, 0, 0)


def test_a_claimed_job_is_rq_s_running_job(mill: Mill) -> None:
    mill.submit(1)
    (job,) = queue(mill, "w").claim(1)
    rq_job = fetch(mill, job.id)
    assert (rq_job.get_status(), rq_job.worker_name, rq_job.origin) == (JobStatus.STARTED, "w", QUEUE)
    assert StartedJobRegistry(QUEUE, connection=mill.redis).get_job_ids() == [job.id]
    queue(mill, "w").commit([outcome(job)])
    assert fetch(mill, job.id).get_status() == JobStatus.FINISHED
    assert Queue(QUEUE, connection=mill.redis).finished_job_registry.get_job_ids() == [job.id]
    assert mill.redis.zcard(f"rq:wip:{QUEUE}") == 0


def test_a_lease_is_extended_once_an_eighth_of_it_has_passed(mill: Mill) -> None:
    mill.submit(1)
    w = queue(mill, "w")
    (job,) = w.claim(1)
    key, lease = wire.leased_key(QUEUE), f"{job.id}:{job.token}"
    first: Any = mill.redis.zscore(key, lease)
    assert w.renew([job]) == []
    assert mill.redis.zscore(key, lease) == first
    mill.redis.zadd(key, {lease: first - 8})
    assert w.renew([job]) == []
    assert first <= float(mill.redis.zscore(key, lease) or 0) < first + 10


def test_a_job_has_one_id_in_each_batch_which_no_tool_takes_for_an_option() -> None:
    ids = [wire.job_id(batch, f"r-{n}") for batch in ("a", "b") for n in range(2000)]
    assert len(set(ids)) == 4000
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{15}", id) for id in ids)
    assert wire.job_id("a", "r-0") == ids[0]


def test_a_commit_sent_twice_is_recorded_once(mill: Mill) -> None:
    mill.submit(1)
    w = queue(mill, "w")
    (job,) = w.claim(1)
    assert w.commit([outcome(job)]) == [True]
    assert w.commit([outcome(job)]) == [True]
    status = mill.status()
    assert (status.done, status.running, status.prompt_tokens, status.completion_tokens) == (1, 0, 3, 5)
    assert len(mill.lines()) == 1


def test_a_commit_is_dropped_once_another_worker_has_the_job(mill: Mill) -> None:
    mill.submit(1)
    slow, quick = queue(mill, "slow"), queue(mill, "quick")
    (late,) = slow.claim(1)
    lapse(mill, late)
    assert quick.reap() == (1, 0, 0)
    (fresh,) = quick.claim(1)
    assert [drop.why for drop in slow.renew([late])] == ["lost"]
    assert slow.commit([outcome(late)]) == [False]
    assert mill.lines() == {}
    assert quick.commit([outcome(fresh)]) == [True]
    assert slow.commit([outcome(late)]) == [False]
    assert len(mill.lines()) == 1


def test_a_late_commit_counts_while_nobody_else_has_the_job(mill: Mill) -> None:
    mill.submit(1)
    slow, other = queue(mill, "slow"), queue(mill, "other")
    (late,) = slow.claim(1)
    lapse(mill, late)
    other.reap()
    assert slow.commit([outcome(late)]) == [True]
    assert other.claim(1) == []
    status = mill.status()
    assert (status.done, status.running, status.queued) == (1, 0, 0)


def test_renewed_leases_are_not_reaped(mill: Mill) -> None:
    mill.submit(2)
    w = queue(mill, "w", lease=0.4)
    w.renew([])
    kept, lost = w.claim(2)
    for _ in range(5):
        time.sleep(0.1)
        assert w.renew([kept]) == []
    assert w.reap() == (1, 0, 0)
    assert [job.id for job in w.claim(5)] == [lost.id]


def test_a_job_that_loses_every_lease_fails_as_poison(mill: Mill) -> None:
    mill.submit(1)
    w = queue(mill, "w")
    for lost in range(1, wire.MAX_LEASES + 1):
        (job,) = w.claim(1)
        assert job.alone == (lost == wire.MAX_LEASES)
        w.blame([job])
        lapse(mill, job)
        assert w.reap() == ((1, 0, 0) if lost < wire.MAX_LEASES else (0, 1, 0))
    error = mill.lines()["r-0"]["error"]
    assert error["code"] == "lost_leases"
    assert mill.status().failed == 1
    poisoned = wire.job_id("b", "r-0")
    assert Queue(QUEUE, connection=mill.redis).failed_job_registry.get_job_ids() == [poisoned]


def test_released_jobs_return_to_the_front_and_their_leases_do_not_count(mill: Mill) -> None:
    mill.submit(4)
    w = queue(mill, "w")
    jobs: list[Claimed] = []
    for _ in range(wire.MAX_LEASES + 2):
        jobs = w.claim(2)
        assert [(job.custom_id, job.alone) for job in jobs] == [("r-0", False), ("r-1", False)]
        assert w.release(jobs) == 2
    assert mill.status().running == 0
    assert w.release(jobs) == 0


def test_cancelling_ends_queued_jobs_at_once_and_running_ones_by_renewal(mill: Mill) -> None:
    mill.submit(2500)
    mill.submit(3, batch="other")
    w = queue(mill, "w")
    running = w.claim(2)
    assert batches.cancel(mill.redis, "b") == 2498
    assert [job.batch for job in queue(mill, "v").claim(9)] == ["other"] * 3
    assert [(drop.id, drop.why) for drop in w.renew(running)] == [(job.id, "cancelled") for job in running]
    w.commit([Outcome(running[0], "cancelled", b'{"custom_id":"r-0"}'), outcome(running[1])])
    status = mill.status()
    assert (status.cancelled, status.done, status.complete, status.is_cancelled) == (2499, 1, True, True)
    lines = mill.lines()
    assert len(lines) == 2500
    assert lines["r-77"]["error"]["code"] == "batch_cancelled"
    assert mill.submit(2500) == batches.Submitted(0, 0, 0)


def test_a_cancelled_batch_takes_no_more_lines(mill: Mill) -> None:
    mill.submit(1)
    batches.cancel(mill.redis, "b")
    assert mill.submit(3) == batches.Submitted(0, 0, 0)
    assert mill.status().cancelled == 1
    assert queue(mill, "w").claim(5) == []


def test_workers_end_the_lines_of_a_batch_that_was_only_marked_as_cancelled(mill: Mill) -> None:
    mill.submit(1500)
    mill.redis.hset(wire.batch_key("b"), "cancelled_at", "0")
    queue(mill, "w").reap()
    assert mill.status().cancelled == 1500


def test_keys_of_a_batch_expire_only_when_it_is_complete(mill: Mill) -> None:
    mill.submit(2)
    w = queue(mill, "w")
    first, second = w.claim(2)
    keys = [wire.batch_key("b"), wire.ended_key("b"), wire.results_key("b")]
    w.commit([outcome(first)])
    assert [mill.redis.ttl(key) for key in keys] == [-1, -1, -1]
    w.commit([outcome(second)])
    assert all(0 < mill.redis.ttl(key) <= wire.RESULT_TTL for key in keys)
    assert 0 < mill.redis.ttl(f"rq:job:{first.id}") <= wire.RESULT_TTL


def test_a_batch_is_kept_for_as_long_as_was_asked(mill: Mill) -> None:
    info = batches.BatchInfo("b", PAIR, "normal", 2, kept_for=600)
    mill.submit(2)
    for repeated in (info, replace(info, kept_for=None)):
        batches.create(mill.redis, repeated)
    w = queue(mill, "w")
    first, second = w.claim(2)
    w.commit([outcome(first)])
    assert mill.redis.ttl(wire.batch_key("b")) == -1
    w.commit([outcome(second)])
    batches.acknowledge(mill.redis, "b", list(batches.results(mill.redis, "b"))[:1])
    left = {key: mill.redis.ttl(key) for key in mill.redis.keys("draftmill:*:b")}
    assert left.keys() >= {b"draftmill:batch:b", b"draftmill:ended:b", b"draftmill:handed:b", b"draftmill:results:b"}
    assert all(590 <= seconds <= 600 for seconds in left.values()), left


def test_suspended_queues_give_no_jobs(mill: Mill) -> None:
    mill.submit(1)
    mill.redis.set("rq:suspended", 1)
    assert queue(mill, "w").claim(1) == []
    mill.redis.delete("rq:suspended")
    assert len(queue(mill, "w").claim(1)) == 1


def test_a_second_queue_entry_of_a_job_changes_nothing(mill: Mill) -> None:
    mill.submit(1)
    w = queue(mill, "w")
    (job,) = w.claim(1)
    mill.redis.rpush(f"rq:queue:{QUEUE}", job.id, "no-such-job")
    assert w.claim(5) == []
    w.commit([outcome(job)])
    mill.redis.rpush(f"rq:queue:{QUEUE}", job.id)
    assert w.claim(5) == []
    assert len(mill.lines()) == 1


@pytest.mark.parametrize("priority", wire.PRIORITIES)
def test_results_are_read_in_pages_and_can_be_followed(mill: Mill, priority: str) -> None:
    mill.submit(7, priority=priority)
    w = queue(mill, "w")
    w.commit([outcome(job) for job in w.claim(5)])
    found = list(batches.results(mill.redis, "b", count=2))
    assert [result.n for result in found] == [1, 2, 3, 4, 5]
    w.commit([outcome(job) for job in w.claim(5)])
    assert [result.n for result in batches.results(mill.redis, "b", found[-1].entry)] == [6, 7]


def test_jobs_that_would_wait_are_taken_from_a_full_queue_only(mill: Mill) -> None:
    mill.submit(40)
    w = queue(mill, "w")
    assert len(w.claim(16, ahead=8)) == 16
    assert len(w.claim(8, ahead=8)) == 6
    assert len(w.claim(20, ahead=4)) == 18
    mill.submit(3, batch="tail")
    assert w.claim(8, ahead=8) == []
    assert len(w.claim(8, ahead=5)) == 3
