"""What the queue costs Redis: claims among many batches, renewals, traffic of a job and of idle workers."""

from __future__ import annotations

import random
import statistics
import string
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import redis as redis_py

from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.leases import JobQueue, Outcome
from tests.farm.farm import Farm
from tests.farm.figure import Figure
from tests.redis_server import fresh_server
from tests.worker.run_worker import PAIR

TEXT = 1200
"""Characters of a usual job's prompt, which compress as badly as random words do."""

SENT = ("evalsha", "eval", "blpop")
"""All that producers and workers send once they are connected; other commands are those of scripts."""


def claims(full: bool) -> Figure:
    """One job, and 64 of them, from a queue of 50,000 in few and in many batches; median milliseconds."""
    jobs, targets = (50_000, {1: 1.0, 1000: 1.5, 5000: 2.0}) if full else (2_000, {1: 1.0, 100: 1.5})
    said: list[str] = []
    holds = True
    for count, target in targets.items():
        with fresh_server() as server:
            redis = server.connect()
            for batch in range(count):
                submit(redis, f"batch_{batch:024x}", ["x"] * (jobs // count), user=f"user-{batch % 5}")
            claim = JobQueue(redis, "w", PAIR, 60).claim
            one = statistics.median(_ms(partial(claim, 1)) for _ in range(60))
            many = statistics.median(_ms(partial(claim, 64)) for _ in range(20))
        said.append(f"{count:,} batches: {one:.2f} ms, 64 jobs {many:.1f} ms")
        holds = holds and one <= target and many <= 10
    return Figure("; ".join(said), holds)


def renewals(full: bool) -> Figure:
    """64 jobs of 2 MB, as their worker renews them each second."""
    size = 2_000_000 if full else 20_000
    with fresh_server() as server:
        redis = server.connect()
        for n in range(64):
            submit(redis, f"batch_{n:024x}", [random.Random(n).randbytes(size // 2).hex()])
        queue = JobQueue(redis, "w", PAIR, 60)
        jobs = [job for _ in range(16) for job in queue.claim(4)]
        took = statistics.median(_ms(partial(queue.renew, jobs)) for _ in range(30))
    return Figure(f"{took:.2f} ms", took <= 2)


def traffic(full: bool) -> Figure:
    """A job of 1.2 KB from submission to its result of 0.7 KB, eight at a time, and workers without one."""
    count, workers, idle = (2_000, 100, 20) if full else (400, 2, 4)
    dice = random.Random(0)
    words = ["".join(dice.choices(string.ascii_lowercase, k=dice.randint(2, 9))) for _ in range(3000)]
    answer = b'{"response":"%s"}' % (b"y" * 680)
    with Farm(lease=60) as farm:
        before = _counts(farm.redis)
        for first in range(0, count, 500):
            texts = [" ".join(dice.choices(words, k=300))[:TEXT] for _ in range(first, min(first + 500, count))]
            submit(farm.redis, f"batch_{first:024x}", texts)
        queue = JobQueue(farm.redis, "w", PAIR, 60)
        while jobs := queue.claim(8):
            queue.blame(jobs)
            queue.renew(jobs)
            assert all(queue.commit([Outcome(job, "done", answer, 300, 150) for job in jobs]))
        received, commands, written, _ = ((after - then) / count for after, then in _changes(farm.redis, before))
        for _ in range(workers):
            farm.start()
        farm.wait(lambda: len(batches.workers(farm.redis)) == workers, 120)
        time.sleep(5)
        before = _counts(farm.redis)
        time.sleep(idle)
        asked, calls, _, busy = ((after - then) / idle / workers for after, then in _changes(farm.redis, before))
    text = (
        f"{received / 1e3:.1f} KB to Redis in {commands:.1f} commands, {written / 1e3:.2f} KB in its append-only file; "
        f"an idle worker, of {workers}: {asked / 1e3:.1f} KB/s in {calls:.1f} commands/s, {100 * busy:.3f} % of a core"
    )
    a_job = received <= 5e3 and commands <= 15 and written <= 3e3
    return Figure(text, a_job and asked <= 4e3 and calls <= 4 and busy <= 0.03 / 100)


def submit(redis: redis_py.Redis, batch: str, texts: list[str], user: str = "ann") -> None:
    """A batch with a line for each text."""
    info = batches.BatchInfo(batch, PAIR, "normal", len(texts), "in.jsonl", user)
    batches.create(redis, info)
    for first in range(0, len(texts), 500):
        bodies = [
            wire.JobBody(batch=batch, custom_id=f"r-{n}", pair=PAIR, prompts=(text,), line=n)
            for n, text in enumerate(texts[first : first + 500], first)
        ]
        batches.submit_chunk(redis, info, bodies)


def _ms(act: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    assert act() is not None
    return 1e3 * (time.perf_counter() - begin)


def _counts(redis: redis_py.Redis) -> tuple[float, float, float, float]:
    """Bytes that Redis received, commands that it was sent, bytes of its append-only file, its processor seconds."""
    found: Any = redis.info("everything")
    sent = sum(found.get(f"cmdstat_{command}", {"calls": 0})["calls"] for command in SENT)
    seconds = found["used_cpu_user"] + found["used_cpu_sys"]
    return found["total_net_input_bytes"], sent, found["aof_current_size"], seconds


def _changes(redis: redis_py.Redis, before: tuple[float, ...]) -> list[tuple[float, float]]:
    return list(zip(_counts(redis), before, strict=True))
