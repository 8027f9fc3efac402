"""Who waits for whom: users with many batches, and jobs on their last lease."""

from __future__ import annotations

import time

from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.leases import JobQueue
from tests.farm.farm import Farm
from tests.farm.figure import Figure
from tests.producer.queue.helpers import expire
from tests.worker.run_worker import PAIR


def turns(full: bool) -> Figure:
    """20 batches of one user were there first; then another user's one batch is to have every other turn."""
    each, alone = (200, 2_000) if full else (30, 300)
    with Farm(rows=4, round_seconds=0.002, lease=5) as farm:
        for number in range(20):
            farm.submit(each, batch=f"ann-{number}", tokens=4, user="ann")
        farm.submit(alone, batch="bob", tokens=4, user="bob")
        for _ in range(2):
            farm.start()
        farm.wait(lambda: farm.status("bob").complete, 240)
        last = max(_times(farm, "bob"))
        beside = sum(at <= last for number in range(20) for at in _times(farm, f"ann-{number}"))
    text = f"{alone:,} lines of the one batch took as long as {beside:,} of the 20"
    return Figure(text, abs(beside - alone) <= 0.1 * alone)


def sick_jobs(full: bool) -> Figure:
    """Honest jobs by themselves, and again beside jobs that have one lease left and so must run alone."""
    honest, sick, rounds = (180, 5, 5) if full else (48, 2, 1)
    without = [_seconds(honest, 0) for _ in range(rounds)]
    beside = [_seconds(honest, sick) for _ in range(rounds)]
    ratio = min(beside) / min(without)
    text = (
        f"{honest} honest jobs: {min(without):.2f} s alone, {min(beside):.2f} s beside {sick} sick ones ({ratio:.2f})"
    )
    return Figure(text, ratio <= (1.1 if full else 1.5))


def _seconds(honest: int, sick: int) -> float:
    """From the first result of the honest jobs to the last; returns when all sick ones have ended as well."""
    with Farm(rows=4, round_seconds=0.01, lease=5) as farm:
        if sick:
            farm.submit(sick, batch="sick", tokens=20)
            _spend_leases(farm, sick)
        farm.submit(honest, tokens=20)
        for _ in range(2):
            farm.start()
        account = farm.account(honest)
        assert account.lost == account.duplicated == 0, account
        assert not sick or farm.wait(lambda: farm.status("sick").done == sick, 30)
        times = _times(farm, "b")
        return (max(times) - min(times)) / 1000


def _spend_leases(farm: Farm, count: int) -> None:
    """Lets the batch `sick` lose all leases but one."""
    victim = JobQueue(farm.redis, "victim", PAIR, lease=5)
    for _ in range(wire.MAX_LEASES - 1):
        jobs = victim.claim(count)
        victim.blame(jobs)
        farm.redis.hset("draftmill:alive", mapping={"5000": 0, "last": int(time.time() * 1000)})
        expire(farm.redis, *jobs)
        assert victim.reap().requeued == count
    assert farm.redis.llen(wire.alone_key(PAIR)) == count
    farm.redis.delete("draftmill:alive")


def _times(farm: Farm, batch: str) -> list[int]:
    """When each result of a batch was recorded, in milliseconds."""
    return [int(result.entry.partition("-")[0]) for result in batches.results(farm.redis, batch)]
