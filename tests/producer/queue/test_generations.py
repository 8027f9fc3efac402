"""A batch that was forgotten and submitted again is another one: nothing of the earlier one comes back."""

from __future__ import annotations

import time
from threading import Timer

from draftmill.producer.queue import batches, ending, wire
from draftmill.producer.queue.batches import BatchInfo
from draftmill.producer.queue.leases import Outcome
from tests.producer.queue.helpers import lapse, outcome, queue
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR


def test_nothing_of_a_forgotten_batch_comes_back(mill: Mill) -> None:
    mill.submit(2)
    w, v = queue(mill, "w"), queue(mill, "v")
    late, other = w.claim(2)
    first = mill.status().generation
    lapse(mill, late, other)
    batches.cancel(mill.redis, "b")
    assert batches.forget(mill.redis, "b")
    assert mill.submit(2).new == 2
    assert mill.status().generation > first
    assert [drop.why for drop in w.renew([late, other])] == ["lost"] * 2
    assert w.commit([outcome(late), Outcome(other, "retry", b"", reason="x")]) == [False, False]
    assert w.release([other]) == 0
    w.blame([late])
    fresh = v.claim(2)
    assert w.commit([outcome(late)]) == [False]
    assert v.commit([outcome(job) for job in fresh]) == [True] * 2
    assert (mill.status().done, mill.status().complete) == (2, True)
    assert len(mill.lines()) == 2


def test_a_batch_is_forgotten_only_when_it_is_complete(mill: Mill) -> None:
    mill.submit(2)
    w = queue(mill, "w")
    w.commit([outcome(job) for job in w.claim(1)])
    assert not batches.forget(mill.redis, "b")
    assert len(mill.lines()) == 1
    w.commit([outcome(job) for job in w.claim(1)])
    assert batches.forget(mill.redis, "b")
    assert batches.status(mill.redis, "b") is None
    assert batches.forget(mill.redis, "b"), "to repeat is harmless"


def test_registering_again_keeps_user_time_and_generation(mill: Mill) -> None:
    first = batches.create(mill.redis, BatchInfo("b", PAIR, "normal", 3, "a.jsonl", "ann"))
    again = batches.create(mill.redis, BatchInfo("b", PAIR, "high", 3, "a.jsonl", "bob"))
    assert (again.user, again.created, again.generation) == ("ann", first.created, first.generation)
    assert again.priority == "high"


def test_lines_of_a_batch_that_is_not_there_are_not_queued(mill: Mill) -> None:
    info = BatchInfo("b", PAIR, "normal", 1)
    body = wire.JobBody(batch="b", custom_id="r-0", pair=PAIR, prompts=("say it",), line=1)
    assert batches.submit_chunk(mill.redis, info, [body]) == batches.Submitted()
    assert mill.redis.keys() == []


def test_reading_waits_for_the_first_result(mill: Mill) -> None:
    mill.submit(2)
    w = queue(mill, "w")
    begin = time.monotonic()
    assert batches.read(mill.redis, "b", "0-0", 10, block=0.2) == []
    assert 0.1 < time.monotonic() - begin < 2
    jobs = w.claim(2)
    timer = Timer(0.2, lambda: w.commit([outcome(jobs[0])]))
    timer.start()
    (first,) = batches.read(mill.redis, "b", "0-0", 10, block=4)
    assert time.monotonic() - begin < 4
    assert (first.n, first.job) == (1, jobs[0].id)
    assert batches.read(mill.redis, "b", first.entry, 10) == []
    timer.join()


def test_one_file_at_a_time_collects_a_batch(mill: Mill) -> None:
    assert batches.hold(mill.redis, "b", "t1 mini:/data/out.jsonl", 1) is None
    assert batches.hold(mill.redis, "b", "t1 mini:/data/out.jsonl", 1) is None
    assert batches.hold(mill.redis, "b", "t2 air:/tmp/x y.jsonl", 1) == "mini:/data/out.jsonl"
    time.sleep(1.1)
    assert batches.hold(mill.redis, "b", "t2 air:/tmp/x y.jsonl", 1) is None
    assert batches.hold(mill.redis, "b", "t1 mini:/data/out.jsonl", 1) == "air:/tmp/x y.jsonl"
    assert batches.held_by(mill.redis, "b") == "air:/tmp/x y.jsonl"
    assert batches.hold(mill.redis, "b", "t2 air:/tmp/x y.jsonl", 0) is None  # given up
    time.sleep(0.01)
    assert batches.held_by(mill.redis, "b") == ""
    assert batches.hold(mill.redis, "b", "t1 mini:/data/out.jsonl", 1) is None


def test_bad_lines_are_kept_with_the_batch(mill: Mill) -> None:
    mill.submit(1)
    lines = [b'{"n":%d}' % n for n in range(2500)]
    ending.add_bad(mill.redis, "b", lines[:7])
    ending.add_bad(mill.redis, "b", lines)
    assert list(ending.bad_lines(mill.redis, "b")) == lines
    w = queue(mill, "w")
    w.commit([outcome(job) for job in w.claim(1)])
    ending.add_bad(mill.redis, "b", lines[:3])
    assert list(ending.bad_lines(mill.redis, "b")) == lines[:3]
    assert 0 < mill.redis.ttl(wire.bad_key("b")) <= wire.RESULT_TTL
    ending.add_bad(mill.redis, "b", [])
    assert list(ending.bad_lines(mill.redis, "b")) == []


def test_two_people_with_one_file_have_two_batches() -> None:
    assert wire.batch_of("batch_1", "ann") != wire.batch_of("batch_1", "bob")
    assert wire.batch_of("batch_1", "ann") == wire.batch_of("batch_1", "ann")
