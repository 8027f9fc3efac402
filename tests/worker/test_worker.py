"""Whole workers, as processes, against a real server: what they survive, and that each line ends exactly once."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import orjson
from rq import Queue
from rq.command import send_stop_job_command
from rq.job import Job

from draftmill.producer.queue import batches, wire
from tests.producer.queue.helpers import leases_of
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR

QUEUE = wire.queue_name(PAIR, "b")
RQ = Path(sys.executable).with_name("rq")

CLEANER = """
import sys, time, redis
from rq.registry import StartedJobRegistry
connection = redis.Redis.from_url(sys.argv[1])
print("cleaning", flush=True)
while True:
    StartedJobRegistry(sys.argv[2], connection=connection).cleanup()
    time.sleep(0.01)
"""


def all_done(status: batches.BatchStatus) -> bool:
    return status.complete


def some_done(status: batches.BatchStatus) -> bool:
    return status.done >= 20 and status.running > 0


def test_two_workers_end_every_line_once(mill: Mill) -> None:
    mill.submit(120)
    workers = [mill.start(), mill.start()]
    mill.wait(all_done)
    lines = mill.lines()
    assert len(lines) == 120
    body = lines["r-7"]["response"]["body"]
    assert lines["r-7"]["error"] is None
    assert body["choices"][0]["finish_reason"] == "length"
    counts = {"prompt_tokens": 2, "completion_tokens": 10, "total_tokens": 12}
    assert body["usage"] == {**counts, "prompt_tokens_details": {"cached_tokens": 0}}
    status = mill.status()
    assert (status.done, status.running, status.completion_tokens) == (120, 0, 1200)
    reports = batches.workers(mill.redis)
    assert {report["pair"] for report in reports} == {PAIR}
    info = subprocess.run([RQ, "info", "-u", mill.server.url], capture_output=True, text=True, check=True)
    assert f"{QUEUE} | 0, 0 executing, 120 finished, 0 failed" in info.stdout
    assert "2 workers, 2 queues" in info.stdout
    assert [mill.stop(worker)[0] for worker in workers] == [0, 0]
    assert batches.workers(mill.redis) == []
    assert mill.redis.smembers("rq:workers") == set()


def test_killed_worker_among_hostile_cleaners(mill: Mill) -> None:
    """Lines end once though a worker dies and RQ's own clean-up runs all the time."""
    mill.submit(100)
    cleaners = [
        subprocess.Popen([sys.executable, "-c", CLEANER, mill.server.url, QUEUE], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        victim = mill.start(lease=1.5)
        mill.wait(some_done)
        victim.kill()
        killed = time.monotonic()
        mill.start(lease=1.5)
        subprocess.run([RQ, "info", "-u", mill.server.url], capture_output=True, check=True)
        mill.wait(all_done)
        assert time.monotonic() - killed < 15  # lease and reap take two seconds, the machine may be busy
    finally:
        for cleaner in cleaners:
            cleaner.kill()
            cleaner.communicate()
    assert len(mill.lines()) == 100
    assert (mill.status().done, mill.status().running) == (100, 0)


def test_a_stopped_machine_loses_its_jobs_and_records_nothing_twice(mill: Mill) -> None:
    """A Mac that sleeps past its leases: others take over, and what it still finishes is dropped."""
    mill.submit(60, tokens=40)
    sleeper = mill.start(lease=0.6)
    mill.wait(lambda status: status.running > 0)
    sleeper.send_signal(signal.SIGSTOP)
    mill.start(lease=0.6)
    mill.wait(all_done)
    sleeper.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    code, _ = mill.stop(sleeper)
    assert code == 0
    assert len(mill.lines()) == 60
    assert mill.status().done == 60


def test_first_signal_finishes_what_is_running(mill: Mill) -> None:
    mill.submit(100, tokens=40)
    worker = mill.start(rows=4)
    mill.wait(lambda status: status.done > 0)
    code, _ = mill.stop(worker)
    status = mill.status()
    assert code == 0
    assert status.running == 0
    assert 0 < status.done == len(mill.lines()) < 100
    assert status.queued == mill.redis.llen(f"rq:queue:{QUEUE}") == 100 - status.done


def test_second_signal_hands_everything_back_at_once(mill: Mill) -> None:
    mill.submit(20, tokens=10_000)
    worker = mill.start(rows=4)
    mill.wait(lambda status: status.running > 0)
    worker.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    begin = time.monotonic()
    code, logged = mill.stop(worker, signal.SIGINT)
    assert time.monotonic() - begin < 2
    assert code == 130
    assert "handed back" in logged
    assert (mill.status().running, mill.redis.llen(f"rq:queue:{QUEUE}")) == (0, 20)


def test_a_stop_that_takes_too_long_hands_back_without_using_up_a_lease(mill: Mill) -> None:
    mill.submit(20, tokens=10_000)
    for _ in range(wire.MAX_LEASES):
        worker = mill.start(rows=4, drain=0.5)
        mill.wait(lambda status: status.running > 0)
        code, logged = mill.stop(worker)
        assert code == 130
        assert "handed back" in logged
    assert {leases_of(mill, wire.job_id("b", f"r-{n}")) for n in range(20)} <= {None, 0}
    assert (mill.status().running, mill.redis.llen(f"rq:queue:{QUEUE}")) == (0, 20)


def test_a_request_that_runs_too_long_fails_by_itself(mill: Mill) -> None:
    mill.submit(1, batch="long", tokens=100_000, max_seconds=0.5)
    mill.submit(1, tokens=200, max_seconds=30)
    mill.start()
    mill.wait(all_done, batch="long", seconds=5)
    error = mill.lines("long")["r-0"]["error"]
    assert error == {"code": "deadline_exceeded", "message": "stopped after max_seconds = 0.5"}
    mill.wait(all_done)
    assert mill.status().done == 1


def test_a_request_with_which_rounds_failed_is_tried_again(mill: Mill) -> None:
    mill.submit(4, tokens=20)
    mill.submit(1, batch="flaky", prompt="flaky")
    worker = mill.start()
    mill.wait(all_done)
    mill.wait(all_done, batch="flaky")
    assert (mill.status().done, mill.status("flaky").done) == (4, 1)
    assert mill.stop(worker)[0] == 0


def try_again(mill: Mill) -> None:
    """Lets what waits for its next try have it now."""
    waiting: Any = mill.redis.zrange(wire.LATER, 0, -1)
    mill.redis.zadd(wire.LATER, dict.fromkeys(waiting, 0))


def test_an_engine_that_cannot_go_on_ends_its_worker(mill: Mill) -> None:
    """What ran counts, and waits for its next try; what only waited goes back as it was."""
    mill.submit(2, batch="sick", prompt="sick")
    mill.submit(4, tokens=10_000)
    worker = mill.start(rows=3, lease=60)
    assert worker.wait(timeout=20) != 0
    mill.processes.remove(worker)
    assert "EngineFailed: a round failed (RuntimeError: out of memory)" in worker.communicate()[1]
    later: Any = mill.redis.zcard(wire.LATER)
    assert later == 3
    assert [(status.queued, status.running) for status in (mill.status(), mill.status("sick"))] == [(4, 0), (2, 0)]
    assert all(errors_of(mill, batch, n) <= 1 for batch, count in (("sick", 2), ("b", 4)) for n in range(count))


def errors_of(mill: Mill, batch: str, n: int) -> int:
    """How many tries of a job have been counted against it."""
    return leases_of(mill, wire.job_id(batch, f"r-{n}")) or 0


def test_requests_that_fail_their_rounds_fail_alone_and_say_why(mill: Mill) -> None:
    """Also on a worker that has nothing else to do, so that these are all the rounds that it knows."""
    mill.submit(4, batch="bad", prompt="broken", tokens=5)
    worker = mill.start(rows=8, lease=60)
    for tries in (1, 2):
        mill.wait(lambda _: mill.redis.zcount(wire.LATER, 1, "+inf") == 4, batch="bad")
        if tries == 2:
            mill.submit(3, batch="good", tokens=300)  # in the round before the last try, and they end well
        try_again(mill)
    mill.wait(all_done, batch="bad")
    mill.wait(all_done, batch="good")
    assert worker.poll() is None
    assert mill.status("good").done == 3
    errors = [line["error"] for line in mill.lines("bad").values()]
    assert errors == [{"code": "engine_failed", "message": "the engine failed with RuntimeError"}] * 4
    mill.submit(1, batch="after", tokens=5)
    mill.wait(all_done, batch="after")
    assert mill.status("after").done == 1


def test_results_that_redis_did_not_take_are_sent_by_the_next_worker(mill: Mill) -> None:
    mill.submit(8, tokens=60)
    first = mill.start(rows=8, round_seconds=0.01, lease=60)
    mill.wait_for_rows(8)
    mill.server.kill()
    (file,) = mill.spool.glob("*.jsonl")
    deadline = time.monotonic() + 10
    while len(file.read_bytes().splitlines()) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open("ab") as torn:
        torn.write(b'{"job": "b-')
    mill.server.start()
    assert mill.status().done == 0
    second = mill.start(lease=60)
    mill.wait(all_done, seconds=15)  # long before the leases expire
    assert mill.status().done == len(mill.lines()) == 8
    assert "sending 8 results" in mill.stop(second)[1]
    assert list(mill.spool.glob("*")) == []


def test_a_quick_stop_while_redis_is_away_leaves_the_results_on_disk(mill: Mill) -> None:
    mill.submit(4, tokens=40)
    worker = mill.start(rows=4, round_seconds=0.01, lease=60, drain=1.5)
    mill.wait_for_rows(4)
    mill.server.kill()
    time.sleep(1)
    code, logged = mill.stop(worker)
    assert code == 130
    assert "4 results wait in" in logged
    mill.server.start()
    mill.start(lease=60)
    mill.wait(all_done, seconds=15)
    assert mill.status().done == 4


def test_poison_kills_three_workers_and_no_neighbour(mill: Mill) -> None:
    mill.submit(1, batch="bad", prompt="poison")
    mill.submit(6, tokens=5)
    died = 0
    while died < wire.MAX_LEASES:
        mill.start(lease=0.5).wait(timeout=10)
        died += 1
    mill.start(lease=0.5)
    mill.wait(all_done)
    mill.wait(all_done, batch="bad")
    assert mill.lines("bad")["r-0"]["error"]["code"] == "lost_leases"
    assert mill.status().done == 6


def test_cancel_stops_running_rows_within_seconds(mill: Mill) -> None:
    mill.submit(30, tokens=100_000)
    worker = mill.start(lease=60)
    mill.wait(lambda status: status.running > 0)
    assert (batches.cancel(mill.redis, "b") or 0) > 0
    mill.wait(all_done, seconds=4)
    assert {line["error"]["code"] for line in mill.lines().values()} == {"batch_cancelled"}
    assert len(mill.lines()) == 30
    mill.submit(5, batch="next")
    mill.wait(all_done, batch="next")
    assert mill.stop(worker)[0] == 0


def test_rq_s_stop_command_ends_that_job_only(mill: Mill) -> None:
    mill.submit(1, tokens=100_000, batch="long")
    mill.submit(3, tokens=100)
    mill.start()
    mill.wait(lambda status: status.running == 1, batch="long")
    time.sleep(0.3)
    id = wire.job_id("long", "r-0")
    send_stop_job_command(mill.redis, id, serializer=wire.JsonSerializer)
    mill.wait(all_done, batch="long")
    assert mill.lines("long")["r-0"]["error"]["code"] == "request_stopped"
    mill.wait(all_done)
    assert mill.status().done == 3


def test_redis_killed_in_mid_run_loses_nothing(mill: Mill) -> None:
    mill.submit(150)
    worker = mill.start(lease=1.5)
    mill.wait(some_done)
    mill.server.kill()
    time.sleep(0.5)
    assert worker.poll() is None
    mill.server.start()
    mill.wait(all_done)
    code, logged = mill.stop(worker)
    assert code == 0
    assert "trying again" in logged
    assert "Traceback" not in logged
    assert len(mill.lines()) == 150
    assert mill.status().done == 150


def test_hostile_jobs_run_nothing_and_harm_nobody(mill: Mill, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Bomb:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {mark}",)

    command = f"touch {mark}"
    bodies = [
        pickle.dumps(("os.system", None, (command,), {})),
        pickle.dumps(Bomb()),
        zlib.compress(pickle.dumps(Bomb())),
        zlib.compress(orjson.dumps(["os.system", None, [command], {}])),
        zlib.compress(orjson.dumps([wire.FUNCTION, None, [{"batch": "b", "custom_id": "x"}], {}])),
        zlib.compress(orjson.dumps([wire.FUNCTION, None, [{}], {"callback": "os.system"}])),
        zlib.compress(orjson.dumps("x")),
        zlib.compress(b"\0" * 100_000_000),
        b"",
    ]
    for number, data in enumerate(bodies):
        job: dict[Any, Any] = {"data": data, "status": "queued", "origin": QUEUE, "failure_callback_name": "os.system"}
        mill.redis.hset(f"rq:job:hostile{number}", mapping=job)
        mill.redis.rpush(f"rq:queue:{QUEUE}", f"hostile{number}")
    Queue(QUEUE, connection=mill.redis).enqueue("os.system", command)
    mill.submit(6)
    mill.redis.hset(f"rq:job:{wire.job_id('b', 'r-0')}", "data", bodies[1])
    worker = mill.start()
    mill.wait(all_done)
    assert mill.lines()["r-0"]["error"]["code"] == "invalid_request"
    failed = Queue(QUEUE, connection=mill.redis).failed_job_registry.get_job_ids()
    assert len(failed) == len(bodies) + 2
    assert not mark.exists()
    assert mill.status().done == 5
    assert mill.stop(worker)[0] == 0


def test_results_logs_and_spool_never_quote_a_prompt(mill: Mill) -> None:
    mill.submit(3, prompt="xyzzy")
    mill.submit(1, batch="long", prompt="xyzzy " * 2000)
    mill.submit(1, batch="slow", prompt="xyzzy", tokens=100_000, max_seconds=0.2)
    mill.submit(1, batch="flaky", prompt="xyzzy flaky")
    mill.submit(1, batch="odd", prompt="xyzzy")
    body = {"batch": "odd", "custom_id": "r-0", "pair": PAIR, "prompt": ["xyzzy"]}
    data = zlib.compress(orjson.dumps([wire.FUNCTION, None, [body], {}]))
    mill.redis.hset(f"rq:job:{wire.job_id('odd', 'r-0')}", "data", data)
    worker = mill.start()
    lines = []
    for batch in ("b", "long", "slow", "flaky", "odd"):
        mill.wait(all_done, batch=batch)
        lines += [result.line for result in batches.results(mill.redis, batch)]
    code, logged = mill.stop(worker)
    assert code == 0
    assert len(lines) == 7
    assert "xyzzy" not in logged
    assert not any(b"xyzzy" in line for line in lines)


def test_a_request_that_cannot_run_fails_by_itself(mill: Mill) -> None:
    mill.submit(1, batch="long", prompt="word " * 2000)
    mill.submit(2)
    mill.start()
    mill.wait(all_done, batch="long")
    line = mill.lines("long")["r-0"]
    assert line["response"]["status_code"] == 400
    assert "2000 tokens" in line["error"]["message"]
    job = Job.fetch(wire.job_id("long", "r-0"), connection=mill.redis, serializer=wire.JsonSerializer)
    assert job.is_failed
    mill.wait(all_done)
    assert mill.status().done == 2


def test_a_worker_loads_mlx_lm_only_with_a_model() -> None:
    code = """
import sys, draftmill.worker.worker
sys.exit(bool({"mlx_lm", "transformers", "numpy"} & sys.modules.keys()))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
