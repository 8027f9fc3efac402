"""Whose job is next: users, batches, priorities and limits."""

from __future__ import annotations

from collections import Counter

import pytest

from draftmill.producer.queue import batches, fleet, wire
from draftmill.producer.queue.leases import Outcome
from tests.producer.queue.helpers import alike, lapse, outcome, queue, served
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR


def test_claims_follow_priority_then_order(mill: Mill) -> None:
    mill.submit(2, batch="soon", priority="high")
    mill.submit(2, batch="slow", priority="low")
    mill.submit(2, batch="usual")
    claimed = queue(mill, "w").claim(5)
    assert [(job.batch, job.custom_id) for job in claimed] == [
        ("soon", "r-0"),
        ("soon", "r-1"),
        ("usual", "r-0"),
        ("usual", "r-1"),
        ("slow", "r-0"),
    ]


def test_batches_of_one_priority_share_alike(mill: Mill) -> None:
    w = queue(mill, "w")
    mill.submit(500, batch="million")
    assert served(w, 100) == {"million": 100}
    mill.submit(20, batch="small")
    mill.submit(500, batch="other")
    assert alike(served(w, 57), 3)
    served(w, 9)
    assert alike(served(w, 40), 2)


def test_low_priority_waits_and_does_not_starve(mill: Mill) -> None:
    mill.submit(600, batch="high", priority="high")
    mill.submit(100, batch="normal")
    mill.submit(10, batch="low", priority="low")
    first = served(queue(mill, "w"), 546)
    assert (first["high"], first["normal"], first["low"]) == (513, 31, 2)


def running_now(mill: Mill) -> dict[str, int]:
    return {found.user: found.running for found in fleet.limits(mill.redis) if found.running}


def test_a_user_at_the_limit_waits_and_saves_nothing_up(mill: Mill) -> None:
    w = queue(mill, "w")
    mill.redis.hset(wire.LIMITS, mapping={"*": 3, "ops": 100})
    mill.submit(50, batch="ann-1", user="ann")
    mill.submit(50, batch="ann-2", user="ann")
    mill.submit(60, batch="ops", user="ops")
    running = w.claim(40)
    assert Counter(job.batch for job in running) == {"ops": 37, "ann-1": 2, "ann-2": 1}
    assert running_now(mill) == {"ann": 3, "ops": 37}
    w.commit([outcome(job) for job in running if job.batch.startswith("ann")])
    assert Counter(job.batch[:3] for job in w.claim(8)) == {"ops": 5, "ann": 3}
    mill.redis.delete(wire.LIMITS)
    assert alike(Counter(job.batch[:3] for job in w.claim(12)), 2)


def test_limits_count_what_was_released_lost_or_retried(mill: Mill) -> None:
    mill.redis.hset(wire.LIMITS, "ann", 2)
    mill.submit(9, user="ann")
    w, other = queue(mill, "w"), queue(mill, "other")
    held = other.claim(9)
    assert len(held) == 2
    lapse(mill, *held)
    w.reap()
    assert w.release(w.claim(9)) == 2
    assert w.commit([Outcome(job, "retry", b"", reason="the engine failed") for job in w.claim(9)]) == [True, True]
    assert len(w.claim(9)) == 2
    assert running_now(mill) == {"ann": 2}


@pytest.mark.parametrize("one_by_one", [True, False])
def test_users_share_alike_however_many_batches_each_has(mill: Mill, one_by_one: bool) -> None:
    for number in range(20):
        mill.submit(20, batch=f"ann-{number}", user="ann")
    mill.submit(300, batch="bob-1", user="bob")
    w = queue(mill, "w")
    count = served(w, 200) if one_by_one else Counter(job.batch for job in w.claim(200))
    assert 90 <= count["bob-1"] <= 110
    assert alike(count - Counter({"bob-1": 200}), 20)


def test_priorities_keep_their_meaning_between_the_batches_of_users(mill: Mill) -> None:
    mill.submit(400, batch="ann-high", user="ann", priority="high")
    mill.submit(100, batch="ann-normal", user="ann")
    for number in range(3):
        mill.submit(100, batch=f"bob-{number}", user="bob")
    count = served(queue(mill, "w"), 180)
    assert 155 <= count["ann-high"] <= 165
    assert abs(count["ann-normal"] - sum(count[f"bob-{number}"] for number in range(3))) <= 2


def test_submitting_again_with_another_priority_moves_what_is_queued(mill: Mill) -> None:
    mill.submit(30, batch="a", priority="low")
    mill.submit(30, batch="b")
    w = queue(mill, "w")
    assert served(w, 5)["b"] >= 4
    mill.submit(30, batch="a", priority="high")
    assert mill.status("a").priority == "high"
    assert served(w, 17)["a"] >= 15
    mill.submit(30, batch="a", priority="low")
    assert mill.status("a").priority == "low"
    assert served(w, 20)["b"] >= 19
    while w.commit([outcome(job) for job in w.claim(9)]):
        pass
    assert mill.status("a").complete
    assert mill.status("b").complete
    assert mill.redis.keys("draftmill:turns:*") == []


def test_a_lost_job_returns_with_the_priority_that_its_batch_has_now(mill: Mill) -> None:
    mill.submit(1, batch="a", priority="low")
    mill.submit(9, batch="b")
    w = queue(mill, "w")
    jobs = w.claim(2)
    assert {job.batch for job in jobs} == {"a", "b"}
    mill.submit(1, batch="a", priority="high")
    lapse(mill, *jobs)
    w.reap()
    assert "a" in [job.batch for job in w.claim(2)]


def test_what_a_user_runs_is_counted_anew_after_whatever_happens(mill: Mill) -> None:
    mill.redis.hset(wire.LIMITS, "ann", 3)
    mill.submit(9, user="ann")
    w = queue(mill, "w")
    held = w.claim(9)
    mill.submit(9, user="bob")  # another submits the same batch
    assert mill.status().user == "ann"
    w.commit([outcome(job) for job in held])
    assert [found.running for found in fleet.limits(mill.redis)] == [0]
    held = w.claim(9)
    batches.cancel(mill.redis, "b")
    mill.redis.delete(*(f"rq:job:{job.id}" for job in held))  # as RQ's tools do
    lapse(mill, *held)
    w.reap()
    assert mill.status().complete
    assert batches.forget(mill.redis, "b")
    left = wire.queue_name(PAIR, "b")  # as after a fault that nobody thought of
    mill.redis.zadd(wire.leased_key(left), {"gone:w.1.1": 1})
    mill.redis.hset(wire.RUNNING, left, "ann")
    w.reap()
    assert [found.running for found in fleet.limits(mill.redis)] == [0]
    mill.submit(3, user="ann", batch="c")
    assert len(w.claim(9)) == 3
