"""Batches that are paused, go on, and get another priority."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from click.testing import CliRunner, Result

from draftmill.producer.cli.main import main
from draftmill.producer.cli.progress import Speed, describe
from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.leases import Outcome
from draftmill.producer.queue.orders import steer
from tests.producer.queue.helpers import lapse, lose, outcome, queue
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR


def draftmill(mill: Mill, *words: str) -> Result:
    return CliRunner().invoke(main, words, env={"REDIS_URL": mill.server.url})


def test_a_paused_batch_takes_no_turns_until_it_goes_on(mill: Mill) -> None:
    mill.submit(20, batch="a")
    mill.submit(20, batch="b")
    w = queue(mill, "w")
    running = w.claim(4)
    own = sum(job.batch == "a" for job in running)
    assert steer.pause(mill.redis, "a")
    assert {job.batch for job in w.claim(6, held=4)} == {"b"}
    assert w.commit([outcome(job) for job in running]) == [True] * 4  # what runs finishes
    assert (mill.status("a").done, mill.status("a").is_paused) == (own, True)
    mill.submit(30, batch="a")  # the rest of it
    w.reap()
    assert {job.batch for job in w.claim(100)} == {"b"}
    assert w.claim(1) == []
    mill.redis.zadd(wire.WORKERS, {"w": 1})
    assert steer.resume(mill.redis, "a")
    assert w.wait(1)  # it is called
    assert Counter(job.batch for job in w.claim(100)) == {"a": 30 - own}


def test_a_batch_that_ends_while_it_is_paused_is_paused_no_longer(mill: Mill) -> None:
    mill.submit(1)
    w = queue(mill, "w")
    jobs = w.claim(1)
    steer.pause(mill.redis, "b")
    w.commit([Outcome(job, "failed", b"{}") for job in jobs])
    info = batches.BatchInfo("b", PAIR, "normal", 1)
    body = wire.JobBody(batch="b", custom_id="r-0", pair=PAIR, prompts=("x",), line=1)
    assert batches.submit_chunk(mill.redis, info, [body], retry_failed=True).retried == 1
    assert not mill.status().is_paused
    assert len(w.claim(1)) == 1


def test_a_lost_lease_of_a_paused_batch_waits_too(mill: Mill) -> None:
    mill.submit(1, batch="a")
    w = queue(mill, "w")
    jobs = w.claim(1)
    steer.pause(mill.redis, "a")
    lapse(mill, *jobs)
    assert w.reap().requeued == 1
    assert w.claim(1) == []
    steer.resume(mill.redis, "a")
    assert len(w.claim(1)) == 1


def test_jobs_that_must_run_alone_wait_while_their_batch_is_paused(mill: Mill) -> None:
    mill.submit(1, batch="a")
    mill.submit(1, batch="b")
    w = queue(mill, "w")
    for _ in range(wire.MAX_LEASES - 1):
        lose(mill, w, *w.claim(2))
    assert mill.redis.llen(wire.alone_key(w.pair)) == 2
    for batch in ("a", "b"):
        mill.redis.hset(f"rq:job:{wire.job_id(batch, 'r-0')}", "queued", "1 512 0")  # they have waited for long
    steer.pause(mill.redis, "a")
    steer.pause(mill.redis, "b")
    assert w.claim(1) == []
    mill.submit(10, batch="c")
    assert len(w.claim(1, held=1)) == 1  # it does not drain for them
    last: Any = mill.redis.lindex(wire.alone_key(w.pair), -1)
    resumed = "b" if last.decode() == wire.job_id("b", "r-0") else "a"
    steer.resume(mill.redis, resumed)
    others = w.claim(20)
    assert {job.batch for job in others} == {"c"}
    (alone,) = w.claim(1)
    assert (alone.batch, alone.alone) == (resumed, True)


def test_another_priority_holds_from_the_next_line_on(mill: Mill) -> None:
    for batch in ("a", "b"):
        mill.submit(100, batch=batch, priority="low")
    w = queue(mill, "w")
    assert steer.prioritize(mill.redis, "b", "high")
    assert Counter(job.batch for job in w.claim(30)) == {"b": 29, "a": 1}
    assert steer.prioritize(mill.redis, "b", "low")
    assert mill.status("b").priority == "low"
    claimed = Counter(job.batch for job in w.claim(40))
    assert claimed["a"] == claimed["b"] == 20


@pytest.mark.parametrize("order", ["pause", "resume", "priority"])
def test_what_is_over_takes_no_orders(mill: Mill, order: str) -> None:
    mill.submit(1)
    words = (order, "b", "high")[: 3 if order == "priority" else 2]
    batches.cancel(mill.redis, "b")
    refused = draftmill(mill, *words)
    assert (refused.exit_code, refused.stderr) == (2, "Error: b is cancelled already\n")
    unknown = draftmill(mill, order, "c", *words[2:])
    assert (unknown.exit_code, "no batch 'c' here" in unknown.stderr) == (2, True)


def test_the_commands_say_what_they_did(mill: Mill) -> None:
    mill.submit(10)
    queue(mill, "w").claim(3)
    assert draftmill(mill, "pause", "b").stdout == "Paused; 3 running lines finish. To go on: draftmill resume b\n"
    assert "paused" in draftmill(mill, "status").stdout
    assert describe(mill.status("b"), Speed(), 9) == "0/10 · paused · waiting for a worker"
    assert draftmill(mill, "priority", "b", "high").stdout == "7 queued lines have priority high\n"
    assert draftmill(mill, "resume", "b").stdout == "Resumed; 7 lines are queued\n"
    assert draftmill(mill, "resume", "b").stdout == "b was not paused\n"
    assert "running" in draftmill(mill, "status").stdout
    draftmill(mill, "pause", "b")
    assert draftmill(mill, "cancel", "b").exit_code == 0
    assert mill.status().cancelled == 7
