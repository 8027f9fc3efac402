"""What RQ's own tools do to jobs, as the buttons of its dashboard: every batch ends, with one outcome for each line."""

from __future__ import annotations

from collections.abc import Callable

import orjson
import pytest
from rq import Queue

from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.leases import JobQueue, Outcome
from tests.producer.queue.helpers import fetch, lapse, outcome, queue
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR

COUNT = 20


def rq_queue(mill: Mill) -> Queue:
    return Queue(wire.queue_name(PAIR, "b"), connection=mill.redis, serializer=wire.JsonSerializer)


def id_of(n: int) -> str:
    return wire.job_id("b", f"r-{n}")


def settle(mill: Mill, w: JobQueue) -> None:
    """What workers do: reap, and run what is left."""
    w.reap()
    while jobs := w.claim(100):
        w.commit([outcome(job) for job in jobs])


def ended_by_rq(mill: Mill) -> set[str]:
    """The lines that RQ's tools ended; each line of the batch has one outcome."""
    assert mill.status().complete
    queue = wire.queue_name(PAIR, "b")
    assert mill.redis.exists(wire.open_key("b"), wire.leased_key(queue), f"rq:queue:{queue}") == 0
    lines = [orjson.loads(result.line) for result in batches.results(mill.redis, "b")]
    assert len(lines) == len({line["custom_id"] for line in lines}) == COUNT
    ended = [line for line in lines if (line.get("error") or {}).get("code") == "request_stopped"]
    assert all("RQ's tools" in line["error"]["message"] for line in ended)
    return {line["custom_id"] for line in ended}


def cancel(mill: Mill, n: int) -> None:
    fetch(mill, id_of(n)).cancel()


def delete(mill: Mill, n: int) -> None:
    fetch(mill, id_of(n)).delete()


@pytest.mark.parametrize("button", [cancel, delete])
def test_cancelled_and_deleted_jobs_end(mill: Mill, button: Callable[[Mill, int], None]) -> None:
    mill.submit(COUNT)
    for n in (0, 3, 17):
        button(mill, n)
    settle(mill, queue(mill, "w"))
    assert ended_by_rq(mill) == {"r-0", "r-3", "r-17"}
    assert (mill.status().done, mill.status().cancelled) == (COUNT - 3, 3)
    assert mill.submit(COUNT) == batches.Submitted(done=COUNT)


@pytest.mark.parametrize("button", [Queue.empty, Queue.delete])
def test_an_emptied_or_deleted_queue_ends_what_was_in_it(mill: Mill, button: Callable[[Queue], None]) -> None:
    mill.submit(COUNT)
    w = queue(mill, "w")
    running = w.claim(4)
    button(rq_queue(mill))
    w.commit([outcome(job) for job in running])
    settle(mill, w)
    assert len(ended_by_rq(mill)) == COUNT - 4


def test_a_job_that_runs_is_stopped_once_it_is_cancelled(mill: Mill) -> None:
    mill.submit(COUNT)
    w = queue(mill, "w")
    (job,) = w.claim(1)
    cancel(mill, 0)
    w.reap()
    (drop,) = w.renew([job])
    assert (drop.id, drop.why) == (job.id, "stopped")
    w.commit([Outcome(job, "cancelled", b'{"custom_id":"r-0"}')])
    settle(mill, w)
    assert ended_by_rq(mill) == set()


@pytest.mark.parametrize("button", [cancel, delete])
def test_a_job_that_ran_in_a_worker_that_died_ends(mill: Mill, button: Callable[[Mill, int], None]) -> None:
    mill.submit(COUNT)
    w = queue(mill, "w")
    (job,) = w.claim(1)
    button(mill, 0)
    lapse(mill, job)
    settle(mill, w)
    assert ended_by_rq(mill) == {"r-0"}
    w.commit([outcome(job)])  # too late, and harmless
    assert len(ended_by_rq(mill)) == 1


@pytest.mark.parametrize("button", [cancel, delete])
def test_a_job_that_waits_for_its_next_try_ends(mill: Mill, button: Callable[[Mill, int], None]) -> None:
    mill.submit(COUNT)
    w = queue(mill, "w")
    (job,) = w.claim(1)
    w.commit([Outcome(job, "retry", b"", reason="the engine failed")])
    button(mill, 0)
    mill.redis.zadd(wire.LATER, {job.id: 1})
    settle(mill, w)
    assert ended_by_rq(mill) == {"r-0"}


def test_entries_that_only_the_queue_s_list_lost_are_queued_again(mill: Mill) -> None:
    mill.submit(COUNT)
    w = queue(mill, "w")
    mill.redis.lpop(f"rq:queue:{wire.queue_name(PAIR, 'b')}", 5)  # as a worker of RQ's own does
    settle(mill, w)
    assert ended_by_rq(mill) == set()
    assert mill.status().done == COUNT


def test_a_long_queue_is_repaired_at_once(mill: Mill) -> None:
    mill.submit(3000)
    w = queue(mill, "w")
    for n in (5, 2500):
        cancel(mill, n)
    assert w.reap() == (0, 0, 2)
    rq_queue(mill).empty()
    assert w.reap() == (0, 0, 2998)
    assert mill.status().complete
    assert len(mill.lines()) == 3000


def test_a_batch_is_looked_after_however_many_older_ones_there_are(mill: Mill) -> None:
    for number in range(120):
        mill.submit(1, batch=f"old-{number}")
    mill.submit(COUNT)
    for number in range(60):
        mill.submit(1, batch=f"new-{number}")
    rq_queue(mill).empty()
    w = queue(mill, "w")
    for _ in range(4):
        w.reap()
    assert len(ended_by_rq(mill)) == COUNT


def test_requeued_by_rq_an_ended_job_does_not_run_again(mill: Mill) -> None:
    mill.submit(COUNT)
    w = queue(mill, "w")
    (job,) = w.claim(1)
    w.commit([Outcome(job, "failed", b'{"custom_id":"r-0","error":{"code":"x","message":"y"}}', reason="y")])
    fetch(mill, job.id).requeue()
    settle(mill, w)
    assert ended_by_rq(mill) == set()
    assert mill.status().failed == 1
