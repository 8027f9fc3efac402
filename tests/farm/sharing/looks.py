"""What it costs to look at a large farm: page, exporter and `draftmill status`; and a server whose batches wait."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import redis as redis_py

from draftmill.producer.cli.status import MOST_LISTED
from draftmill.producer.queue import batches, fleet, wire
from draftmill.producer.web.dashboard.view import Observer
from draftmill.producer.web.exporter_collector import FarmCollector
from tests.farm.farm import Farm
from tests.farm.figure import Figure
from tests.farm.sharing.costs import submit
from tests.producer.conftest import Shell
from tests.producer.web.serving import Server, create, jsonl, request
from tests.worker.run_worker import PAIR


def looks(full: bool) -> Figure:
    """Medians of looks in this process's processor time. The first look reads all and does not count."""
    count, workers = (10_000, 100) if full else (300, 10)
    with Farm() as farm:
        for n in range(count):
            submit(farm.redis, f"batch_{n:024x}", ["x"], user=f"user-{n % 5}")
        for n in range(workers):
            _report(farm.redis, f"mini-{n}")
        observer, collector = Observer(farm.redis), FarmCollector(farm.redis)
        kinds: dict[str, Callable[[], object]] = {
            "page": observer.look,
            "exporter": lambda: list(collector.collect()),
            "status": lambda: batches.statuses(farm.redis, batches.newest(farm.redis, MOST_LISTED + 1)),
        }
        took = {name: statistics.median(islice(iter(partial(_ms, look), None), 1, 13)) for name, look in kinds.items()}
    text = ", ".join(f"{name} {each:.0f} ms" for name, each in took.items())
    return Figure(text, max(took.values()) <= 30)


def _queued(redis: redis_py.Redis) -> int:
    return sum(state.queued for state in batches.list_batches(redis))


def waiting(full: bool) -> Figure:
    """`draftmill serve` with batches that wait for a worker, in processor time of the server and its threads."""
    count, seconds = (100, 20) if full else (5, 2)
    with Farm() as farm:
        server = Server(Shell(farm.folder, farm.folder / "home"), farm.server.url)
        server.start()
        try:
            _report(farm.redis, "mini")  # which takes no job
            for n in range(count):
                create(server.client(f"key-{n % 5}"), jsonl(request("a", prompt=f"say {n}")))
            farm.wait(lambda: _queued(farm.redis) == count, 60)
            time.sleep(2)
            before = _processor_seconds(server.process.pid)
            time.sleep(seconds)
            share = (_processor_seconds(server.process.pid) - before) / seconds
            waits = _queued(farm.redis)
        finally:
            server.kill()
    return Figure(f"{share:.1%} of a core, {waits} batches waited", share <= 0.02 and waits == count)


def _report(redis: redis_py.Redis, name: str) -> None:
    """What a worker that waits says of itself."""
    now = time.time()
    about: dict[Any, Any] = {"pair": PAIR, "host": name, "lease": 60, "state": "working", "seen": now, "started": now}
    redis.hset(wire.worker_key(name), mapping=about | {"chip": "M4", "tokens_per_second": 0})
    redis.zadd(wire.WORKERS, {name: now})
    assert fleet.reports(redis)


def _ms(look: Callable[[], object]) -> float:
    begin = time.process_time()
    look()
    return 1e3 * (time.process_time() - begin)


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
