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
        wire.JobBody(batch="b", custom_id=f"r-{n}", pair=PAIR, prompts=("say it",), line=n + 1, keep={"row": n})
        for n in range(count)
    ]


def submit(mill: Mill, retry_failed: bool = False, missing: bool = False) -> batches.Submitted:
    batches.create(mill.redis, INFO)
    return batches.submit_chunk(mill.redis, INFO, bodies(), retry_failed=retry_failed, missing=missing)


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


def test_only_failures_for_a_reason_run_again(mill: Mill) -> None:
    submit(mill)
    queue = JobQueue(mill.redis, "w", PAIR, 60)
    told = [
        {"code": "lost_leases", "message": "given up: [it] died"},
        {"code": "engine_failed", "message": "out of memory"},
        {"code": "other", "message": f"{'x' * 200} memory"},
    ]
    lines = [orjson.dumps({"custom_id": "", "error": error}) for error in told]
    queue.commit([Outcome(job, "failed", line) for job, line in zip(queue.claim(3), lines, strict=True)])
    counts: list[int] = []
    for reason in ("power", "[IT]", "engine_failed", "memory", "Other:"):
        sent = batches.submit_chunk(mill.redis, INFO, bodies(), retry_failed=True, reason=reason)
        counts.append(sent.retried)
    assert counts == [0, 1, 1, 0, 1]
    assert mill.status().failed == 0


def test_only_failures_run_again(mill: Mill) -> None:
    assert submit(mill) == batches.Submitted(new=3)
    run(mill, "done", "failed", "failed")
    assert submit(mill) == batches.Submitted(done=3)
    assert submit(mill, retry_failed=True) == batches.Submitted(new=2, done=1, retried=2)
    assert submit(mill, retry_failed=True) == batches.Submitted(queued=2, done=1)
    state = mill.status()
    assert (state.submitted, state.ended, state.failed, state.queued) == (3, 1, 0, 2)
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


def collect(mill: Mill) -> None:
    batches.acknowledge(mill.redis, "b", list(batches.results(mill.redis, "b")))


def test_after_the_results_were_collected_failures_can_run_again(mill: Mill) -> None:
    submit(mill)
    run(mill, "done", "failed", "done")
    collect(mill)
    assert mill.status().collected
    assert submit(mill) == batches.Submitted(done=3)
    assert submit(mill, retry_failed=True) == batches.Submitted(new=1, done=2, retried=1)
    assert mill.status().collected is None
    assert not batches.forget(mill.redis, "b")
    assert submit(mill, retry_failed=True) == batches.Submitted(queued=1, done=2)
    run(mill, "done")
    assert outcomes(mill) == {"r-1": True}
    assert mill.status().complete
    collect(mill)
    assert batches.forget(mill.redis, "b")
    assert submit(mill).new == 3


def test_lines_that_a_file_lacks_run_again_unless_their_results_are_still_to_be_read(mill: Mill) -> None:
    submit(mill)
    run(mill, "done", "failed", "done")
    first, second, third = batches.results(mill.redis, "b")
    batches.acknowledge(mill.redis, "b", [first, second])
    assert submit(mill, missing=True) == batches.Submitted(new=2, done=1, retried=1)
    assert submit(mill, missing=True) == batches.Submitted(queued=2, done=1)
    assert (mill.status().done, mill.status().failed, mill.status().open) == (1, 0, 2)
    batches.acknowledge(mill.redis, "b", [first, second])
    run(mill, "done", "done")
    assert [result.n for result in batches.results(mill.redis, "b")] == [third.n, 1, 2]
    assert submit(mill, missing=True) == batches.Submitted(done=3)
    collect(mill)
    assert submit(mill, missing=True) == batches.Submitted(new=3)


def test_a_commit_that_is_sent_again_does_not_bring_a_failure_back(mill: Mill) -> None:
    submit(mill)
    jobs = run(mill, "done", "done", "failed")
    queue = JobQueue(mill.redis, "w", PAIR, 60)
    assert queue.commit([ended(jobs[2], "failed")]) == [True]
    submit(mill, retry_failed=True)
    assert queue.commit([ended(jobs[2], "failed")]) == [False]
    run(mill, "done")
    assert outcomes(mill) == {"r-0": True, "r-1": True, "r-2": True}


def test_a_failure_that_runs_again_is_no_longer_to_be_read(mill: Mill) -> None:
    submit(mill)
    run(mill, "failed", "failed")
    first = list(batches.results(mill.redis, "b"))
    batches.submit_chunk(mill.redis, INFO, bodies(1), retry_failed=True)
    assert list(batches.results(mill.redis, "b")) == first[1:]
    run(mill, "done", "failed")
    later = batches.read(mill.redis, "b", first[-1].entry, 10)
    assert [orjson.loads(result.line)["custom_id"] for result in later] == ["r-2", "r-0"]


def test_lines_that_scripts_end_hand_back_what_is_kept(mill: Mill) -> None:
    submit(mill)
    (job,) = JobQueue(mill.redis, "w", PAIR, 60).claim(1)
    assert job.keep == b'{"row":0}'
    batches.cancel(mill.redis, "b")
    assert [line["keep"] for line in mill.lines().values()] == [{"row": 1}, {"row": 2}]
