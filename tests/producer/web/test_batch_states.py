"""Those who look again and again read a bounded number of batches, and miss nothing for long."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import redis as redis_py

from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.batches import BatchInfo
from draftmill.producer.queue.leases import JobQueue, Outcome
from draftmill.producer.queue.orders import steer
from draftmill.producer.web.batch_states import MOST_OPEN, ROUND, BatchStates
from draftmill.producer.web.dashboard.feed import Feed
from draftmill.producer.web.dashboard.view import Observer, View
from tests.worker.run_worker import PAIR


def submit(redis: redis_py.Redis, id: str, retry_failed: bool = False) -> None:
    info = BatchInfo(id, PAIR, "normal", 1)
    batches.create(redis, info)
    body = wire.JobBody(batch=id, custom_id="a", pair=PAIR, prompts=("say it",), line=1)
    batches.submit_chunk(redis, info, [body], retry_failed=retry_failed)


def read(redis: redis_py.Redis, states: BatchStates) -> int:
    """How many batches a look reads."""
    redis.config_resetstat()
    states.look()
    stats: Any = redis.info("commandstats")
    return stats["cmdstat_bitcount"]["calls"]


def test_a_look_reads_what_is_new_and_some_of_the_rest(redis: redis_py.Redis) -> None:
    states = BatchStates(redis)
    for n in range(MOST_OPEN + 90):
        submit(redis, f"b-{n}")
    assert read(redis, states) == MOST_OPEN + 90
    assert read(redis, states) == MOST_OPEN
    (job,) = JobQueue(redis, "w", PAIR, 60).claim(1)
    for _ in range(2):
        states.look()
    assert [state.id for state in states.open.values() if state.running] == [job.batch]
    JobQueue(redis, "w", PAIR, 60).commit([Outcome(job, "failed", b"{}")])
    for _ in range(2):
        states.look()
    assert list(states.ended) == [job.batch]
    submit(redis, job.batch, retry_failed=True)
    submit(redis, "newest")
    assert states.look()[0] == "newest"
    for _ in range(ROUND):
        states.look()
    assert job.batch in states.open
    batches.cancel(redis, "newest")
    batches.forget(redis, "newest")
    submit(redis, "late")
    redis.zadd(wire.BATCHES, {"late": 1})  # by a machine whose clock is slow
    redis.hset(wire.batch_key("late"), "created", 1)
    states.look()
    states.look()
    names = states.look()
    assert names[-1] == "late"
    assert "newest" not in {*names, *states.open, *states.ended}
    assert len(states.open) == MOST_OPEN + 91


def test_what_is_shown_is_always_as_it_is_now(redis: redis_py.Redis) -> None:
    states = BatchStates(redis)
    for n in range(3 * MOST_OPEN):
        submit(redis, f"b-{n}")
    states.look()
    states.look()
    steer.pause(redis, "b-0")
    states.look(["b-0"])
    assert states.open["b-0"] == batches.status(redis, "b-0")
    assert states.open["b-0"].is_paused
    (job,) = JobQueue(redis, "w", PAIR, 60).claim(1)
    steer.resume(redis, "b-0")
    for name in ("b-0", job.batch):
        states.look([name])
        assert states.open[name] == batches.status(redis, name)
    batches.cancel(redis, "b-0")
    states.look(["b-0"])
    assert "b-0" in states.ended


def test_while_nobody_watches_it_looks_as_often_as_the_charts_need(redis: redis_py.Redis) -> None:
    looks: list[float] = []

    class Counting(Observer):
        def look(self) -> View:
            looks.append(time.monotonic())
            return super().look()

    async def run() -> None:
        feed = Feed(Counting(redis), "Redis")
        looking = asyncio.create_task(feed.run())
        await asyncio.sleep(3)
        assert len(looks) == 1
        begin = time.monotonic()
        stream = feed.stream(False, lambda: False)
        while len(looks) < 3:
            await anext(stream)
        assert looks[1] - begin < 1.5
        assert looks[2] - looks[1] < 4
        await stream.aclose()
        await asyncio.sleep(1.5)
        count = len(looks)
        await asyncio.sleep(2)
        assert len(looks) == count
        looking.cancel()

    asyncio.run(run())
