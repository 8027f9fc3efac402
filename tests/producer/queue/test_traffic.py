"""What workers and producers send: scripts by their hash, calls to those who wait, and bodies only when claimed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from draftmill.producer.queue import batches, scripts, wire
from draftmill.producer.queue.ending import repair, sweep
from draftmill.producer.queue.leases import Outcome
from tests.producer.queue.helpers import fetch, lapse, outcome, queue
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR

QUEUE = wire.queue_name(PAIR, "b")


def sent(mill: Mill, act: Callable[[], object]) -> tuple[int, int]:
    """Bytes that Redis received and sent meanwhile."""
    names = ("total_net_input_bytes", "total_net_output_bytes")
    before: Any = mill.redis.info("stats")
    act()
    after: Any = mill.redis.info("stats")
    received, answered = (after[name] - before[name] for name in names)
    return received, answered


def test_scripts_go_by_their_hash_and_whole_after_redis_lost_them(mill: Mill) -> None:
    mill.submit(4)
    w = queue(mill, "w")
    w.renew([])
    assert sent(mill, lambda: w.renew([]))[0] < 300
    mill.redis.script_flush()
    first, second, *others = w.claim(4)
    mill.redis.script_flush()
    ends = [outcome(first), Outcome(second, "returned", b""), *map(outcome, others)]
    assert w.commit(ends) == [True] * 4
    assert (mill.status().done, mill.status().queued) == (3, 1)
    mill.server.kill()
    mill.server.start()
    assert [job.custom_id for job in w.claim(4)] == [second.custom_id]


def test_an_error_of_one_call_among_many_is_its_own(mill: Mill) -> None:
    fine, ill = scripts.Script("return 7"), scripts.Script("return redis.call('NONSENSE')")
    for _ in range(2):
        first, error, last = scripts.run_all(mill.redis, [(fine, ()), (ill, ()), (fine, ())])
        assert (first, last) == (7, 7)
        assert isinstance(error, ResponseError)


def test_an_outcome_that_cannot_be_recorded_keeps_none_of_the_others(mill: Mill) -> None:
    mill.submit(20)
    mill.submit(2, batch="ill")
    w = queue(mill, "w")
    jobs = w.claim(22)
    mill.redis.set(wire.results_key("ill"), "no stream")
    answers = w.commit([outcome(job) for job in jobs])
    assert [isinstance(answer, ResponseError) or answer for answer in answers] == [True] * 22
    assert [jobs[n].batch for n, answer in enumerate(answers) if answer is not True] == ["ill"] * 2
    assert len(mill.lines()) == 20
    status = mill.status()
    assert (status.done, status.running, status.prompt_tokens, status.completion_tokens) == (20, 0, 60, 100)
    assert w.commit([outcome(job) for job in jobs if job.batch == "b"]) == [True] * 20  # as if the answer was lost
    assert (mill.status().done, mill.status().prompt_tokens) == (20, 60)


@pytest.mark.parametrize("broken", [wire.SPENT, f"rq:failed:{QUEUE}"])
def test_a_key_that_cannot_be_written_keeps_no_count_from_the_others(mill: Mill, broken: str) -> None:
    mill.submit(4)
    w = queue(mill, "w")
    jobs = w.claim(4)
    mill.redis.delete(broken)
    mill.redis.set(broken, "of another type")
    answers = w.commit([replace(outcome(job), status="failed") for job in jobs])
    assert [type(answer) for answer in answers] == [ResponseError, bool, bool, bool]
    assert "WRONGTYPE" in str(answers[0])
    mill.redis.delete(broken)
    assert len(mill.lines()) == 4
    status = mill.status()
    assert (status.failed, status.running, status.prompt_tokens, status.completion_tokens) == (4, 0, 12, 20)


def test_one_job_has_one_outcome_though_two_are_sent_at_once(mill: Mill) -> None:
    mill.submit(1)
    w = queue(mill, "w")
    (job,) = w.claim(1)
    assert w.commit([outcome(job)] * 3) == [True] * 3
    assert len(mill.lines()) == 1
    assert mill.status().prompt_tokens == 3


def test_what_is_sent_has_no_comments() -> None:
    for file in scripts.LUA.glob("*.lua"):
        assert "--" not in scripts.script(file.stem).text


def test_bodies_go_to_those_who_claim_only(mill: Mill) -> None:
    text = random.Random(0).randbytes(200_000).hex()
    mill.submit(8, prompt=text)
    w = queue(mill, "w")
    before: Any = mill.redis.info("commandstats")
    jobs = w.claim(8)
    assert sum(len(job.data) for job in jobs) > 8 * 200_000
    for act in (lambda: w.renew(jobs), lambda: w.blame(jobs), lambda: w.release(jobs)):
        assert sent(mill, act)[1] < 4000
    after: Any = mill.redis.info("commandstats")
    assert after["cmdstat_hget"]["calls"] - before.get("cmdstat_hget", {"calls": 0})["calls"] <= 40


@pytest.mark.parametrize("end", ["done", "failed", "cancelled"])
def test_bodies_leave_as_soon_as_their_jobs_have_ended(mill: Mill, end: str) -> None:
    text = random.Random(0).randbytes(200_000).hex()
    mill.submit(8, prompt=text)
    w = queue(mill, "w")
    jobs = w.claim(8)
    if end == "cancelled":
        w.release(jobs)
        sweep(mill.redis, "no batch")  # scripts take memory, too
    before: Any = mill.redis.info("memory")
    if end == "cancelled":
        batches.cancel(mill.redis, "b")
    else:
        w.commit([replace(outcome(job), status=end) for job in jobs])
    after: Any = mill.redis.info("memory")
    assert before["used_memory"] - after["used_memory"] > 8 * 180_000
    job = fetch(mill, jobs[0].id)  # RQ's tools still show it
    assert (job.func_name, job.args, job.description) == (wire.FUNCTION, [], jobs[0].custom_id)
    assert job.get_status() == {"done": "finished", "failed": "failed", "cancelled": "canceled"}[end]
    if end != "cancelled":  # a worker that did not see Redis's answer sends its outcomes again
        assert w.commit([outcome(job) for job in jobs]) == [True] * 8


def test_a_full_redis_takes_neither_lines_nor_results(mill: Mill) -> None:
    mill.submit(8)
    info = batches.BatchInfo("b", PAIR, "normal", 9, "test.jsonl", "")
    late = wire.JobBody(batch="b", custom_id="late", pair=PAIR, prompts=("x",), line=9)
    w = queue(mill, "w")
    jobs = w.claim(4)
    used: Any = mill.redis.info("memory")
    mill.redis.config_set("maxmemory", used["used_memory"] // 2)
    with pytest.raises(OutOfMemoryError):
        batches.submit_chunk(mill.redis, info, [late])
    assert all(isinstance(answer, OutOfMemoryError) for answer in w.commit([outcome(job) for job in jobs]))
    assert (mill.status().submitted, mill.status().running, mill.status().done) == (8, 4, 0)
    mill.redis.config_set("maxmemory", 0)
    assert w.commit([outcome(job) for job in jobs]) == [True] * 4
    assert batches.submit_chunk(mill.redis, info, [late]) == batches.Submitted(new=1)


def test_a_worker_that_waits_is_called_when_there_are_jobs(mill: Mill) -> None:
    w = queue(mill, "w")
    mill.redis.zadd(wire.WORKERS, {"w": time.time()})
    for act in (
        lambda: mill.submit(1),
        lambda: w.release(w.claim(1)),
        lambda: (lapse(mill, *w.claim(1)), w.reap()),
    ):
        timer = threading.Timer(0.1, act)
        begin = time.monotonic()
        timer.start()
        assert w.wait(4)
        assert time.monotonic() - begin < 4
        timer.join()
        assert mill.redis.llen(wire.bell_key(PAIR)) == 0
    assert not w.wait(0.1)


def test_one_job_calls_one_worker_and_many_jobs_no_more_than_there_are(mill: Mill) -> None:
    mill.redis.zadd(wire.WORKERS, {f"w-{n}": time.time() for n in range(3)})
    mill.submit(1)
    assert mill.redis.llen(wire.bell_key(PAIR)) == 1
    mill.submit(500)
    assert mill.redis.llen(wire.bell_key(PAIR)) == 3
    assert 0 < mill.redis.ttl(wire.bell_key(PAIR)) <= wire.BELL_SECONDS
    queue(mill, "w").wait(1)
    queue(mill, "w").pass_on()
    assert mill.redis.llen(wire.bell_key(PAIR)) == 3


def test_a_user_at_the_limit_returns_to_the_turns_when_a_job_ends(mill: Mill) -> None:
    mill.redis.zadd(wire.WORKERS, {"w": time.time()})
    mill.redis.hset(wire.LIMITS, "*", 1)
    for number in range(40):
        mill.submit(3, batch=f"b-{number}", user=f"u-{number}")
    w = queue(mill, "w")
    jobs = w.claim(64)
    assert len(jobs) == 40
    assert w.claim(64) == []
    assert mill.redis.zcard(f"draftmill:parked:{wire.WIRE}:{PAIR}") == 40
    mill.redis.delete(wire.bell_key(PAIR))
    w.commit([outcome(jobs[7])])
    assert mill.redis.llen(wire.bell_key(PAIR)) == 1
    assert [job.batch for job in w.claim(64)] == [jobs[7].batch]
    mill.redis.delete(wire.LIMITS)  # by hand: it is noticed within a few claims
    found = [job for _ in range(6) for job in w.claim(64)]
    assert len(found) == 79
    assert mill.redis.keys("draftmill:parked:*") == []


def test_lost_lines_of_a_long_queue_are_found_a_stretch_at_a_time(mill: Mill) -> None:
    mill.submit(2500)
    list_key = f"rq:queue:{wire.queue_name(PAIR, 'b')}"
    lost: Any = mill.redis.lrange(list_key, 1000, 1009)
    for id in lost:
        mill.redis.lrem(list_key, 1, id)
    mill.redis.delete(*(b"rq:job:" + id for id in lost[:4]))
    assert repair(mill.redis, "b") == (6, 4)
    assert repair(mill.redis, "b") == (0, 0)
    assert (mill.status().queued, mill.status().cancelled) == (2496, 4)
    assert batches.cancel(mill.redis, "b") == 2496
    assert mill.status().complete


@pytest.mark.parametrize("resumed", ["suspended", "limited"])
def test_jobs_that_become_ready_without_a_call_are_found_within_seconds(mill: Mill, resumed: str) -> None:
    mill.redis.hset(wire.LIMITS, "ann", 0) if resumed == "limited" else mill.redis.set("rq:suspended", 1)
    worker = mill.start()
    mill.submit(1, user="ann")
    time.sleep(0.5)
    assert mill.status().done == 0
    mill.redis.delete(wire.LIMITS, "rq:suspended")
    mill.wait(lambda status: status.done == 1, 20)
    assert mill.stop(worker)[0] == 0
