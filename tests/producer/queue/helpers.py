"""What the tests of the scripts share: workers without an engine, and leases that run out."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import redis as redis_py
from rq.job import Job

from draftmill.producer.queue import wire
from draftmill.producer.queue.leases import Claimed, JobQueue, Outcome
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR


def queue(mill: Mill, name: str, lease: float = 60) -> JobQueue:
    return JobQueue(mill.redis, name, PAIR, lease)


def outcome(job: Claimed) -> Outcome:
    return Outcome(job, "done", b'{"custom_id":"%s"}' % job.custom_id.encode(), 3, 5)


def lapse(mill: Mill, *jobs: Claimed) -> None:
    """Lets the leases of these jobs run out, with Redis within reach all the time."""
    mill.redis.hset("draftmill:alive", mapping={"60000": 0, "last": int(time.time() * 1000) + 1000})
    expire(mill.redis, *jobs)


def expire(redis: redis_py.Redis, *jobs: Claimed) -> None:
    for job in jobs:
        queues: Any = redis.hget(wire.batch_key(job.batch), "queue")
        for queue in queues.decode().split():
            redis.zadd(wire.leased_key(queue), {f"{job.id}:{job.token}": 1}, xx=True)


def lose(mill: Mill, w: JobQueue, *jobs: Claimed) -> None:
    """A worker dies while these jobs are in its rows, and another takes them back."""
    w.blame(jobs)
    lapse(mill, *jobs)
    w.reap()


def leases_of(mill: Mill, id: str) -> int | None:
    """How many leases of a job count; None if no worker said that one does, or does not."""
    found: Any = mill.redis.hget(f"rq:job:{id}", "leases")
    return None if found is None else int(found.split()[0])


def fetch(mill: Mill, id: str) -> Job:
    return Job.fetch(id, connection=mill.redis, serializer=wire.JsonSerializer)


def served(w: JobQueue, n: int) -> Counter[str]:
    """Claims and ends `n` jobs one by one; how many each batch had."""
    count: Counter[str] = Counter()
    for _ in range(n):
        (job,) = w.claim(1)
        w.commit([outcome(job)])
        count[job.batch] += 1
    return count


def alike(count: Counter[str], batches: int) -> bool:
    """Whether this many batches had equally many, give or take the one that is next."""
    return len(count) == batches and max(count.values()) - min(count.values()) <= 2
