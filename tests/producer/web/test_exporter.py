"""`draftmill exporter` against a real server, as the user `metrics` who may do nothing else."""

from __future__ import annotations

import json
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import redis as redis_py
from prometheus_client.parser import text_string_to_metric_families

from draftmill.producer.queue import acl, batches, wire
from draftmill.producer.queue.leases import JobQueue, Outcome
from draftmill.producer.web.batch_states import MOST_OPEN
from draftmill.producer.web.exporter_collector import FarmCollector
from tests.producer.conftest import Shell
from tests.redis_server import RedisServer

PASSWORDS = {name: f"pass-{name}" for name in ("admin", *acl.ROLES)}
PAIR = "some-pair"


def url(server: RedisServer, role: str) -> str:
    return f"unix://{role}:{PASSWORDS[role]}@{quote(str(server.socket))}"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as folder:
        users = Path(folder, "users.acl")
        users.write_text("\n".join(acl.users(PASSWORDS, (7, 2))) + "\n")
        server = RedisServer(Path(folder), "--aclfile", str(users), "--maxmemory", "1gb")
        server.start()
        yield server
        server.kill()


@pytest.fixture(scope="module")
def page(server: RedisServer) -> Iterator[str]:
    """The address of a running exporter."""
    shell = Shell(server.folder, server.folder)
    process = shell.start("exporter", "--port", "0", "--redis-url", url(server, "metrics"))
    assert process.stdout
    found = re.search(r"(http://\S+)/metrics", process.stdout.readline())
    assert found
    yield found[1]
    process.kill()
    process.communicate()


def read(page: str) -> dict[str, float]:
    """The values of all series by how they are written, without the prefix."""
    with urlopen(f"{page}/metrics") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found = {}
    for sample in (sample for family in families for sample in family.samples):
        labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
        found[f"{sample.name.removeprefix('draftmill_')}{{{labels}}}"] = sample.value
    return found


def test_queues_batches_workers_and_redis(server: RedisServer, page: str) -> None:
    with redis_py.Redis.from_url(url(server, "admin")) as redis:
        for batch, priority, count in (("a", "normal", 3), ("b", "low", 2)):
            info = batches.BatchInfo(batch, PAIR, priority, count, user="ann")
            bodies = [
                wire.JobBody(batch=batch, custom_id=f"{n}", pair=PAIR, prompts=("x",), line=n) for n in range(count)
            ]
            batches.create(redis, info)
            assert batches.submit_chunk(redis, info, bodies[:1]).new == 1
            time.sleep(0.5)
            assert batches.submit_chunk(redis, info, bodies).new == count - 1
        found = read(page)
        of_a, of_b = f"{{pair={PAIR},priority=normal}}", f"{{pair={PAIR},priority=low}}"
        assert (found[f"queue_depth{of_a}"], found[f"queue_depth{of_b}"]) == (3, 2)
        assert found[f"queue_oldest_age_seconds{of_a}"] > 1
        assert 0.5 < found[f"queue_oldest_age_seconds{of_b}"] < 1 + found[f"queue_oldest_age_seconds{of_a}"]
        assert (found["batches{state=queued}"], found["jobs_running{}"]) == (2, 0)
        assert (found["redis_up{}"], found["redis_aof_enabled{}"], found["redis_aof_ok{}"]) == (1, 1, 1)
        assert 0 < found["redis_memory_used_bytes{}"] < found["redis_memory_max_bytes{}"] == 2**30

        queue = JobQueue(redis, "w", PAIR, 60)
        first = queue.claim(1)
        found = read(page)
        later = found[f"queue_oldest_age_seconds{of_a}"]
        assert (found["jobs_running{}"], found[f"queue_depth{of_a}"]) == (1, 2)
        assert later < time.time() - batches.list_batches(redis)[1].created - 0.4, "the job that waited longest is gone"
        (last, *_) = reversed(queue.claim(10))
        assert queue.commit([Outcome(last, "done", b"{}", 30, 50, joules=7.5)]) == [True]
        found = read(page)
        assert found["user_tokens_total{kind=prompt,user=ann}"] == 30
        assert found["user_tokens_total{kind=generated,user=ann}"] == 50
        assert found["user_energy_joules_total{user=ann}"] == 7.5
        assert (found[f"queue_depth{of_a}"], found[f"queue_oldest_age_seconds{of_a}"]) == (0, 0)
        queue.release(first)
        assert read(page)[f"queue_oldest_age_seconds{of_a}"] < 0.4


def test_each_pair_of_a_batch_has_its_queue(server: RedisServer, page: str) -> None:
    info = batches.BatchInfo("c", "left", "high", 4, others=("right",))
    with redis_py.Redis.from_url(url(server, "admin")) as redis:
        batches.create(redis, info)
        for pair, lines in (("left", (1,)), ("right", (2, 3, 4))):
            bodies = [wire.JobBody(batch="c", custom_id=f"{n}", pair=pair, prompts=("x",), line=n) for n in lines]
            batches.submit_chunk(redis, info, bodies)
            time.sleep(0.3)
        found = read(page)
        of_left, of_right = "{pair=left,priority=high}", "{pair=right,priority=high}"
        assert (found[f"queue_depth{of_left}"], found[f"queue_depth{of_right}"]) == (1, 3)
        assert found[f"queue_oldest_age_seconds{of_left}"] > 0.25 + found[f"queue_oldest_age_seconds{of_right}"]


def test_service_discovery_and_a_redis_that_is_away(server: RedisServer, page: str) -> None:
    with redis_py.Redis.from_url(url(server, "admin")) as redis:
        now = time.time()
        for name, metrics in (("mini-1", "10.0.0.7:9481"), ("mini-2", "")):
            report: dict[Any, Any] = {"pair": PAIR, "host": name, "lease": 60, "state": "working", "thermal": "serious"}
            redis.hset(wire.worker_key(name), mapping=report | {"seen": now, "metrics": metrics})
            redis.zadd(wire.WORKERS, {name: now})
    with urlopen(f"{page}/sd") as answer:
        assert answer.headers["Content-Type"] == "application/json"
        assert json.load(answer) == [{"targets": ["10.0.0.7:9481"], "labels": {"host": "mini-1", "pair": PAIR}}]
    found = read(page)
    assert found[f"workers{{pair={PAIR},state=working}}"] == 2
    assert found[f"worker_thermal_state{{host=mini-1,pair={PAIR},worker=mini-1}}"] == 2
    with pytest.raises(HTTPError, match="404"):
        urlopen(f"{page}/other")
    assert server.process
    with ThreadPoolExecutor() as others:
        server.process.send_signal(signal.SIGSTOP)
        scrape = others.submit(read, page)
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"{page}/other", timeout=5)
        assert not scrape.done()
        server.process.send_signal(signal.SIGCONT)
        assert scrape.result()["redis_up{}"] == 1
    server.kill()
    begin = time.monotonic()
    assert read(page) == {"redis_up{}": 0}
    with pytest.raises(HTTPError, match="503"):
        urlopen(f"{page}/sd")
    assert time.monotonic() - begin < 5
    server.start()
    assert read(page)["redis_up{}"] == 1


def test_it_stops_when_told_and_says_why_it_cannot_begin(server: RedisServer) -> None:
    shell = Shell(server.folder, server.folder)
    arguments = ("exporter", "--redis-url", url(server, "metrics"), "--port")
    process = shell.start(*arguments, "0")
    assert process.stdout
    port = process.stdout.readline().removesuffix("/metrics\n").rpartition(":")[2]
    refused = shell(*arguments, port)
    process.terminate()
    assert process.wait(20) == 0
    assert refused.returncode == 2
    why = f"cannot listen on 127.0.0.1:{port}: address already in use; choose another --host or --port"
    assert refused.stderr == f"Error: {why}\n"


def test_many_batches_are_counted_in_several_looks(redis: redis_py.Redis) -> None:
    """Each look reads some; what they have read before counts as it was."""
    collector = FarmCollector(redis)
    for n in range(MOST_OPEN + 50):
        info = batches.BatchInfo(f"b-{n}", PAIR, "normal", 1)
        batches.create(redis, info)
        body = wire.JobBody(batch=info.id, custom_id="a", pair=PAIR, prompts=("x",), line=1)
        batches.submit_chunk(redis, info, [body])

    def counted() -> dict[str, float]:
        found = [sample for metric in collector.collect() for sample in metric.samples]
        return {" ".join((sample.name[10:], *sample.labels.values())): sample.value for sample in found}

    assert counted()[f"queue_depth {PAIR} normal"] == counted()["batches queued"] == MOST_OPEN + 50
    assert collector.is_behind
    queue = JobQueue(redis, "w", PAIR, 60)
    claimed = queue.claim(20)
    queue.commit([Outcome(job, "done", b"{}") for job in claimed])
    collector.look()
    collector.look()
    found = counted()
    assert found[f"queue_depth {PAIR} normal"] == found["batches queued"] == MOST_OPEN + 30
    assert found["batches complete"] == 20
    for n in range(MOST_OPEN + 50):
        batches.cancel(redis, f"b-{n}")
        batches.forget(redis, f"b-{n}")
    for _ in range(3):
        collector.look()
    found = counted()
    assert not any(value for name, value in found.items() if name.startswith("batches "))
    assert f"queue_depth {PAIR} normal" not in found
    assert not collector.is_behind
