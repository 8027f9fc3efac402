"""Failures that are queued again: in one step, with one result per line for every reader at every moment."""

from __future__ import annotations

import orjson

from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.leases import Claimed, JobQueue, Outcome, Status
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR

INFO = batches.BatchInfo("b", PAIR, "normal", 3)


def bodies(count: int = 3) -> list[wire.JobBody]:
    return [
        wire.JobBody(batch="b", custom_id=f"r-{n}", pair=PAIR, prompt="say it", line=n + 1, keep={"row": n})
        for n in range(count)
    ]


def submit(mill: Mill, retry_failed: bool = False) -> batches.Submitted:
    batches.create(mill.redis, INFO)
    return batches.submit_chunk(mill.redis, INFO, bodies(), retry_failed)


def ended(job: Claimed, status: Status) -> Outcome:
    error = None if status == "done" else {"code": "x", "message": "y"}
    line = orjson.dumps({"custom_id": job.custom_id, "error": error})
    return Outcome(job, status, line)


def run(mill: Mill, *statuses: Status) -> list[Claimed]:
    """A worker ends the queued lines in these ways."""
    queue = JobQueue(mill.redis, "w", PAIR, 60)
    jobs = queue.claim(len(statuses))
    assert queue.commit([ended(job, status) for job, status in zip(jobs, statuses, strict=True)]) == [True] * len(jobs)
    return jobs


def outcomes(mill: Mill) -> dict[str, bool]:
    """Whether each line that has a result has a completion."""
    return {id: line["error"] is None for id, line in mill.lines().items()}


def test_only_failures_run_again(mill: Mill) -> None:
    assert submit(mill) == batches.Submitted(new=3)
    run(mill, "done", "failed", "failed")
    assert submit(mill) == batches.Submitted(done=3)
    assert submit(mill, retry_failed=True) == batches.Submitted(new=2, done=1, retried=2)
    assert submit(mill, retry_failed=True) == batches.Submitted(queued=2, done=1)
    state = mill.status()
    assert (state.submitted, state.ended, state.failed, state.queued, state.retries) == (3, 1, 0, 2, 1)
    assert outcomes(mill) == {"r-0": True}
    assert mill.redis.ttl(wire.batch_key("b")) == mill.redis.ttl(wire.results_key("b")) == -1
    run(mill, "done", "failed")
    assert outcomes(mill) == {"r-0": True, "r-1": True, "r-2": False}
    assert (mill.status().done, mill.status().failed, mill.status().complete) == (2, 1, True)
    assert 0 < mill.redis.ttl(wire.failures_key("b")) <= wire.RESULT_TTL


def test_a_line_that_was_stopped_is_a_failure_and_one_of_a_cancelled_batch_is_not(mill: Mill) -> None:
    submit(mill)
    run(mill, "done", "cancelled")
    assert submit(mill, retry_failed=True) == batches.Submitted(new=1, queued=1, done=1, retried=1)
    batches.cancel(mill.redis, "b")
    assert mill.status().cancelled == 2
    assert submit(mill, retry_failed=True) == batches.Submitted()


def test_after_the_results_were_collected_only_failures_can_run_again(mill: Mill) -> None:
    submit(mill)
    run(mill, "done", "failed", "done")
    assert batches.drop_results(mill.redis, "b")
    assert submit(mill) == batches.Submitted(done=3)
    assert submit(mill, retry_failed=True) == batches.Submitted(new=1, done=2, retried=1)
    assert not batches.drop_results(mill.redis, "b")
    assert submit(mill, retry_failed=True) == batches.Submitted(queued=1, done=2)
    run(mill, "done")
    assert outcomes(mill) == {"r-1": True}
    assert mill.status().complete
    assert batches.drop_results(mill.redis, "b")
    batches.forget(mill.redis, "b")
    assert submit(mill).new == 3


def test_a_commit_that_is_sent_again_does_not_bring_a_failure_back(mill: Mill) -> None:
    submit(mill)
    jobs = run(mill, "done", "done", "failed")
    queue = JobQueue(mill.redis, "w", PAIR, 60)
    assert queue.commit([ended(jobs[2], "failed")]) == [True]
    submit(mill, retry_failed=True)
    assert queue.commit([ended(jobs[2], "failed")]) == [False]
    run(mill, "done")
    assert outcomes(mill) == {"r-0": True, "r-1": True, "r-2": True}


def test_a_reader_in_the_middle_gets_the_new_result_and_can_tell_which_failures_stand(mill: Mill) -> None:
    submit(mill)
    jobs = run(mill, "failed", "failed")
    first = list(batches.results(mill.redis, "b"))
    batches.submit_chunk(mill.redis, INFO, bodies(1), retry_failed=True)
    assert batches.failed_at(mill.redis, "b", [job.id for job in jobs]) == [None, first[1].entry]
    run(mill, "done", "failed")
    later = list(batches.results(mill.redis, "b", first[-1].entry, count=1))
    assert [orjson.loads(result.line)["custom_id"] for result in later] == ["r-2", "r-0"]
    assert batches.failed_at(mill.redis, "b", [jobs[0].id]) == [later[1].entry]


def test_lines_that_scripts_end_hand_back_what_is_kept(mill: Mill) -> None:
    submit(mill)
    (job,) = JobQueue(mill.redis, "w", PAIR, 60).claim(1)
    assert job.keep == b'{"row":0}'
    batches.cancel(mill.redis, "b")
    assert [line["keep"] for line in mill.lines().values()] == [{"row": 1}, {"row": 2}]
