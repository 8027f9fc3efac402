"""The work on slots: whatever goes wrong with one of them, it is done in the end, or it says why not; others go on."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import cast

import orjson
import pytest
import redis as redis_py

from draftmill.producer.cli.cron import check_arguments, plan_arguments
from draftmill.producer.client import submission
from draftmill.producer.client.submission import WINDOW
from draftmill.producer.cron import entries, scheduler
from draftmill.producer.cron.schedule import Schedule
from draftmill.producer.cron.scheduler import Scheduler
from draftmill.producer.input import chunks
from draftmill.producer.output.files import open_locked
from draftmill.producer.queue import schedules as store
from draftmill.producer.queue import wire
from draftmill.producer.queue.connect import login
from draftmill.producer.queue.leases import JobQueue, Outcome
from draftmill.producer.queue.rest import stored
from draftmill.producer.queue.schedules import Slot
from tests.producer.conftest import Shell
from tests.producer.cron.conftest import LINE, YEAR, Cron, wait
from tests.redis_server import RedisServer, fresh_server
from tests.worker.run_worker import PAIR

OUT = "out/results.%Y-%m-%dT%H.jsonl"


@pytest.fixture
def dying_server(shell: Shell) -> Iterator[tuple[RedisServer, Cron]]:
    """A server that may be killed and started again, and what runs beside it."""
    with fresh_server() as server, server.connect() as client:
        cron = Cron(shell, client, server.url)
        yield server, cron
        for process in cron.processes:
            process.kill()
            process.communicate()


def end(redis: redis_py.Redis, count: int, failed: bool = False) -> None:
    """Does the work of workers for this many lines."""
    queue = JobQueue(redis, "by hand", PAIR, 60)
    while count:
        jobs = queue.claim(min(count, 100))
        outcomes: list[Outcome] = []
        for job in jobs:
            line = {"id": job.id, "custom_id": job.custom_id, "response": {}, "error": None}
            if failed:
                line |= {"response": None, "error": {"code": "failed", "message": "no"}}
            outcomes.append(Outcome(job, "failed" if failed else "done", orjson.dumps(line), 3, 5))
        queue.commit(outcomes)
        count -= len(jobs)
        time.sleep(0 if jobs else 0.05)


def written(cron: Cron, slot: int) -> list[str]:
    """The lines that OUT of a slot has."""
    out = cron.shell.folder / time.strftime(OUT, time.gmtime(slot / 1000))
    return [orjson.loads(line)["custom_id"] for line in out.read_bytes().splitlines()] if out.exists() else []


def batch_of(cron: Cron) -> str:
    """The batch that waits to be written."""
    wait(lambda: cron.redis.hlen(store.BATCH))
    (batch,) = cast(list[bytes], cron.redis.hvals(store.BATCH))
    return batch.decode()


def submitted(cron: Cron, batch: str) -> int:
    """How many of a batch's lines are queued; a batch is announced before its first lines are."""
    state = cron.found().get(batch)
    return state.submitted if state else 0


def lines(count: int, text: str = "say") -> str:
    return "".join(f'{{"id": "{n}", "prompt": "{text} {n}", "max_tokens": 2}}\n' for n in range(count))


def test_an_error_of_any_kind_ends_only_its_slot(cron: Cron) -> None:
    odd = Schedule(name="odd", every_ms=YEAR, arguments=("in\0.jsonl", "--pair", PAIR))
    cron.redis.zadd(store.NEXT, {"odd": entries.add(cron.redis, odd) - YEAR})
    cron.redis.zadd(store.NEXT, {"tick": cron.add(every_ms=YEAR) - YEAR})
    process = cron.start("--debug")
    wait(cron.last)
    wait(lambda: "unexpected ValueError: embedded null byte" in cron("list").stdout)
    said = cron.stop(process)
    assert "Z: unexpected ValueError: embedded null byte" in said
    assert "Traceback" in said
    (report,) = (r for r in orjson.loads(cron("list", "--json").stdout) if r["name"] == "odd")
    assert (report["last"]["outcome"], report["last"]["code"]) == ("failed", 70)


@pytest.mark.parametrize("first", [float("inf"), -1e17])
def test_a_damaged_time_stops_no_other_schedule(cron: Cron, first: float) -> None:
    entries.add(cron.redis, Schedule(name="odd", every_ms=YEAR, arguments=("in.jsonl",)))
    cron.redis.zadd(store.NEXT, {"odd": first})
    process, _ = cron.start_now()
    wait(cron.last)
    assert "odd cannot run: its next slot is damaged" in cron.stop(process)
    assert "cannot run: its next slot is damaged" in cron("list").stdout


def test_a_dataset_that_cannot_be_read_to_its_end_holds_nothing_up(cron: Cron) -> None:
    os.mkfifo(cron.shell.folder / "pipe.jsonl")  # and nobody writes to it
    pipe = Schedule(name="pipe", every_ms=YEAR, arguments=("pipe.jsonl", "--pair", PAIR))
    slot = entries.add(cron.redis, pipe) - YEAR
    cron.redis.zadd(store.NEXT, {"pipe": slot})
    process, _ = cron.start_now()
    wait(cron.last)
    process.terminate()
    process.communicate(timeout=15)
    assert process.returncode == 130
    (cron.shell.folder / "pipe.jsonl").unlink()
    cron.shell.write("pipe.jsonl", LINE)
    process = cron.start()
    wait(lambda: entries.read(cron.redis, check_arguments).entries["pipe"].last)
    cron.stop(process)
    last = entries.read(cron.redis, check_arguments).entries["pipe"].last
    assert last
    assert (last.at, last.outcome) == (slot, "done")


def test_what_failed_is_counted(cron: Cron) -> None:
    slot = cron.add(every_ms=YEAR, output=OUT) - YEAR
    cron.shell.write("in.jsonl", lines(3) + "not json\n")
    cron.redis.zadd(store.NEXT, {"tick": slot})
    process = cron.start()
    batch = batch_of(cron)
    end(cron.redis, 1, failed=True)
    end(cron.redis, 2)
    wait(cron.last)
    assert "Bad line 4: not JSON" in cron.stop(process)
    last = cron.last()
    assert last
    assert (last.outcome, last.batch) == ("partial", batch)
    assert (last.done, last.failed, last.bad) == (2, 1, 1)
    assert last.said.startswith("2 results in out/")
    assert len(written(cron, slot)) == 2


def test_a_redis_that_is_away_is_outlived(dying_server: tuple[RedisServer, Cron]) -> None:
    server, cron = dying_server
    process, slot = cron.start_now(output=OUT)
    batch_of(cron)
    server.kill()
    time.sleep(4)
    server.start()
    end(cron.redis, 1)
    wait(cron.last)
    said = cron.stop(process)
    assert said.count("; waiting for it\n") == said.count("Redis is back\n") == 1
    assert written(cron, slot) == ["a"]


def test_a_scheduler_stops_while_redis_is_away_and_the_next_goes_on(dying_server: tuple[RedisServer, Cron]) -> None:
    server, cron = dying_server
    process, slot = cron.start_now(output=OUT)
    batch = batch_of(cron)
    server.kill()
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 130
    server.start()
    end(cron.redis, 1)
    process = cron.start()
    wait(cron.last)
    cron.stop(process)
    assert cron.found().keys() == {batch}
    assert written(cron, slot) == ["a"]


def test_lines_that_redis_lost_are_submitted_again(cron: Cron) -> None:
    process, slot = cron.start_now(output=OUT)
    batch = batch_of(cron)
    for key in (wire.open_key(batch), f"rq:queue:{wire.queue_name(PAIR, batch)}"):
        cron.redis.delete(key)
    wait(lambda: cron.redis.hlen(wire.open_key(batch)))
    end(cron.redis, 1)
    wait(cron.last)
    cron.stop(process)
    assert written(cron, slot) == ["a"]


def test_results_that_went_elsewhere_are_generated_again(cron: Cron) -> None:
    """As when another machine's scheduler died while it wrote them."""
    slot = cron.add(every_ms=YEAR, output=OUT) - YEAR
    cron.shell.write("in.jsonl", lines(2))
    cron.redis.zadd(store.NEXT, {"tick": slot})
    process = cron.start()
    batch = batch_of(cron)
    end(cron.redis, 1)
    assert cron.shell("collect", batch, "-o", "elsewhere.jsonl", "--redis-url", cron.url).returncode == 0
    assert len(cron.shell.lines("elsewhere.jsonl")) == 1
    end(cron.redis, 2)
    wait(cron.last)
    cron.stop(process)
    assert sorted(written(cron, slot)) == ["0", "1"]


def test_an_out_that_another_process_writes_is_waited_for(
    cron: Cron, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cron.shell.folder)
    slot = cron.add(every_ms=YEAR, output=OUT) - YEAR
    cron.redis.zadd(store.NEXT, {"tick": slot})
    out = cron.shell.folder / time.strftime(OUT, time.gmtime(slot / 1000))
    out.parent.mkdir()
    running = Scheduler(cron.redis, 1.0, check_arguments, partial(plan_arguments, login()))
    thread = threading.Thread(target=running.run)
    with caplog.at_level(logging.INFO), open_locked(out):
        thread.start()
        end(cron.redis, 1)
        wait(lambda: "to be tried again: another draftmill is writing" in caplog.text)
    wait(cron.last)
    running.stop.set()
    thread.join()
    assert written(cron, slot) == ["a"]


def test_a_large_dataset_is_written_while_it_is_submitted(cron: Cron) -> None:
    count = WINDOW + 1100
    slot = cron.add(every_ms=YEAR, output=OUT) - YEAR
    cron.shell.write("in.jsonl", lines(count))
    cron.redis.zadd(store.NEXT, {"tick": slot})
    victim = cron.start()
    batch = batch_of(cron)
    wait(lambda: submitted(cron, batch) > WINDOW)
    end(cron.redis, 10)
    wait(lambda: len(written(cron, slot)) == 10 and not cron.redis.xlen(wire.results_key(batch)))
    assert submitted(cron, batch) < count
    victim.kill()
    cron.start()
    end(cron.redis, 500)
    wait(lambda: len(written(cron, slot)) == 510)
    cron.processes[-1].kill()
    cron.shell.write("in.jsonl", lines(count, "say another"))  # a batch of its own, and OUT is for that one
    cron.start()
    wait(lambda: batch_of(cron) != batch)
    another = batch_of(cron)
    wait(lambda: submitted(cron, another) > WINDOW)
    assert written(cron, slot) == []


def test_large_batches_hold_no_other_slot_up(cron: Cron, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those without an OUT are left to a feeder; those with one are followed beside the slots that are worked on."""
    monkeypatch.chdir(cron.shell.folder)
    monkeypatch.setattr(submission, "WINDOW", 9)
    monkeypatch.setattr(scheduler, "WORKING", 1)
    monkeypatch.setattr(chunks, "CHUNK", 10)
    cron.shell.write("large.jsonl", lines(30))
    for name, out in (("left", ""), ("followed", OUT)):
        large = Schedule(name=name, every_ms=YEAR, output=out, arguments=("large.jsonl", "--pair", PAIR))
        cron.redis.zadd(store.NEXT, {name: entries.add(cron.redis, large) - YEAR})
    running = Scheduler(cron.redis, 1.0, check_arguments, partial(plan_arguments, login()))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    wait(lambda: [state.submitted for state in cron.found().values()] == [10, 10])
    slot = cron.add(every_ms=YEAR)
    cron.redis.zadd(store.NEXT, {"tick": slot - YEAR})
    wait(cron.last)
    (left,) = stored.batches(cron.redis)
    assert [name.lines for name in stored.names(cron.redis, left)] == [10, 10]
    ended = entries.read(cron.redis, check_arguments).entries
    assert ended["left"].last
    assert ended["left"].last.batch == left
    assert ended["followed"].last is None
    running.stop.set()
    thread.join()


def test_each_slot_has_the_time_in_its_id(cron: Cron) -> None:
    """The same as that of the command line with --slot."""
    process, slot = cron.start_now()
    wait(cron.last)
    cron.stop(process)
    given = ("--slot", str(Slot("tick", slot)), "--pair", PAIR, "--redis-url", cron.url)
    assert cron.shell("submit", "in.jsonl", *given).stdout.strip() in cron.found()
    assert len(cron.found()) == 1
