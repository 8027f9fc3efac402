"""Jobs whose lines a file has already leave the queue, as if their results had been acknowledged."""

from __future__ import annotations

from draftmill.producer.queue import batches, ending, wire
from draftmill.producer.queue.leases import Outcome
from tests.producer.queue.helpers import outcome, queue
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR


def drop(mill: Mill, *lines: int, failed: bool = False, is_last: bool = False) -> None:
    wanted = {f"r-{n}" for n in lines}
    found = [(job, failed) for job in ending.open_jobs(mill.redis, "b") if job.custom_id in wanted]
    ending.drop(mill.redis, "b", found, is_last)


def counts(mill: Mill) -> tuple[int, int, int, int]:
    state = mill.status()
    return state.done, state.failed, state.running, state.queued


def test_what_is_queued_ends_and_what_runs_goes_on(mill: Mill) -> None:
    mill.submit(6)
    w = queue(mill, "w")
    (first,) = w.claim(1)
    assert [(job.n, job.custom_id) for job in sorted(ending.open_jobs(mill.redis, "b"), key=lambda job: job.n)] == [
        (n + 1, f"r-{n}") for n in range(6)
    ]
    drop(mill, 0, 1, 2)
    drop(mill, 0, 1, 2)
    assert counts(mill) == (2, 0, 1, 3)
    assert mill.redis.llen(f"rq:queue:{wire.queue_name(PAIR, 'b')}") == 3
    assert w.commit([outcome(first)]) == [True]
    assert [job.custom_id for job in w.claim(9)] == ["r-3", "r-4", "r-5"]
    assert list(mill.lines()) == ["r-0"]
    assert batches.handed(mill.redis, "b") == 2


def test_a_batch_of_which_all_is_dropped_is_collected(mill: Mill) -> None:
    mill.submit(3)
    drop(mill, 0, 1)
    drop(mill, 2, failed=True)
    state = mill.status()
    assert (state.complete, counts(mill)) == (True, (2, 1, 0, 0))
    assert state.collected
    assert mill.redis.ttl(wire.batch_key("b")) > 0
    assert set(mill.redis.keys("rq:job:*")) == set()
    info = batches.BatchInfo("b", PAIR, "normal", 3)
    failed = wire.JobBody(batch="b", custom_id="r-2", pair=PAIR, prompts=("say it",), line=3)
    assert batches.submit_chunk(mill.redis, info, [failed], retry_failed=True).retried == 1
    assert counts(mill) == (2, 0, 0, 1)


def test_a_job_that_waits_for_its_next_try_leaves_too(mill: Mill) -> None:
    mill.submit(2)
    w = queue(mill, "w")
    (job,) = w.claim(1)
    w.commit([Outcome(job, "retry", b"", reason="x")])
    drop(mill, 0)
    assert mill.redis.zcard(wire.LATER) == 0
    assert counts(mill) == (1, 0, 0, 1)


def test_lines_that_were_never_submitted_are_waited_for_unless_all_are_there(mill: Mill) -> None:
    mill.submit(2)
    batches.create(mill.redis, batches.BatchInfo("b", PAIR, "normal", 5))
    drop(mill, 0, 1)
    assert not mill.status().complete
    drop(mill, is_last=True)
    assert (mill.status().total, mill.status().complete) == (2, True)


def test_a_batch_that_is_not_there_stays_so(mill: Mill) -> None:
    ending.drop(mill.redis, "b", [], is_last=True)
    assert mill.redis.keys() == []
