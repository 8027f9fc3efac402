"""`draftmill cron` with real schedulers on a real server: each slot once, takeover, policies, what users read."""

from __future__ import annotations

import signal
import subprocess
import time
from typing import Any

import orjson
import pytest
import redis as redis_py

from draftmill.producer.cli.cron import check_arguments
from draftmill.producer.cron import entries
from draftmill.producer.cron.schedule import Schedule
from draftmill.producer.queue import schedules as store
from draftmill.producer.queue import wire
from draftmill.producer.queue.schedules import Ended, Slot, spoken
from tests.producer.conftest import ROOT
from tests.producer.cron.conftest import LINE, YEAR, Cron, wait
from tests.producer.cron.test_work import end
from tests.producer.file_server import serving
from tests.producer.s3_server import serving_s3
from tests.worker.run_worker import PAIR, Settings


def owners(redis: redis_py.Redis) -> list[Any]:
    found: Any = redis.hvals("draftmill:cron:owner")
    return found


def test_three_schedulers_one_killed_each_slot_once(cron: Cron) -> None:
    first = cron.add(every_ms=200, missed="all")
    victim, *others = (cron.start() for _ in range(3))
    mark = f"-{victim.pid}-".encode()
    wait(lambda: len(cron.found()) > 5 and any(mark in owner for owner in owners(cron.redis)))
    victim.kill()  # with a slot in hand
    wait(lambda: len(cron.found()) >= 50, 180)
    assert cron.redis.info("clients")["connected_clients"] < 20  # pyright: ignore
    assert cron("remove", "tick").returncode == 0
    wait(lambda: not cron.redis.zcard("draftmill:cron:open"))
    for process in others:
        cron.stop(process)
    found = cron.found()
    assert found.keys() == {cron.batch_of(first + n * 200) for n in range(len(found))}
    for batch in found.values():
        assert (batch.total, batch.submitted) == (1, 1)
        assert cron.redis.llen(f"rq:queue:{wire.queue_name(PAIR, batch.id)}") == 1


def test_an_input_at_a_url_runs_where_the_scheduler_may_read_it(cron: Cron) -> None:
    cron.shell.environment["DRAFTMILL_CACHE"] = str(cron.shell.folder / "cache")
    with serving() as files:
        url, other = (files.put(f"/{folder}/in.jsonl", LINE.encode()) for folder in ("data", "other"))
        slot = cron.add(every_ms=YEAR, arguments=(url, "--pair", PAIR)) - YEAR
        cron.add(name="tock", every_ms=YEAR, arguments=(other, "--pair", PAIR))
        cron.redis.zadd(store.NEXT, {"tick": slot, "tock": slot})
        process = cron.start(urls=[f"{files.url}/data"])
        wait(cron.last)
        assert f"tock cannot run: INPUT {other} is below no --urls of this scheduler" in cron.stop(process)
        assert cron.found().keys() == {cron.batch_of(slot)}
        assert [batch.source for batch in cron.found().values()] == [url]
        assert len(files.asked) == 1


def test_an_output_at_a_url_is_written_where_the_scheduler_may(cron: Cron) -> None:
    with serving_s3() as s3:
        cron.shell.environment |= s3.environment
        out, other = (f"s3://data/{folder}/%Y-%m-%dT%H%M%S.jsonl" for folder in ("answers", "other"))
        slot = cron.add(every_ms=YEAR, output=out) - YEAR
        cron.add(name="tock", every_ms=YEAR, output=other)
        cron.redis.zadd(store.NEXT, {"tick": slot, "tock": slot})
        process = cron.start(out_urls=["s3://data/answers"])
        wait(lambda: any(batch.queued for batch in cron.found().values()))
        end(cron.redis, 1)
        wait(cron.last)
        assert "tock cannot run: -o s3://data/other/ is below no --out-urls of this scheduler" in cron.stop(process)
        (key,) = (key for key in s3.there() if ".draftmill" not in key)
        last = cron.last()
        assert last
        assert last.said == f"1 result in s3://data/{key}"
        assert orjson.loads(s3.read(key))["custom_id"] == "a"


def test_a_slot_whose_scheduler_died_is_taken_over(cron: Cron) -> None:
    slot = cron.add(every_ms=YEAR) - YEAR
    cron.redis.zadd(store.NEXT, {"tick": slot})
    taken = store.look(cron.redis, "dead", 1.0, 4, entries.read(cron.redis, check_arguments).due).taken
    assert taken == {Slot("tick", slot): ""}
    assert not store.look(cron.redis, "early", 1.0, 4, entries.read(cron.redis, check_arguments).due).taken
    process = cron.start()
    wait(cron.last)
    cron.stop(process)
    assert cron.found().keys() == {cron.batch_of(slot)}
    late = store.look(cron.redis, "dead", 1.0, 0, (), taken, {Slot("tick", slot): Ended(slot, 2, "")})
    assert late.lost == taken.keys()
    assert cron.last() == Ended(slot, 0, f"submitted as {cron.batch_of(slot)}", cron.batch_of(slot))


@pytest.mark.parametrize(("missed", "expected"), [("skip", []), ("one", [2]), ("all", [0, 1, 2])])
def test_missed_slots(cron: Cron, missed: str, expected: list[int]) -> None:
    """Three slots passed while no scheduler ran, the last of them more than a minute ago."""
    now = int(time.time() * 1000)
    every = next(
        n for n in range(200_000, 300_000, 1000) if 70_000 < now % n < n - 60_000
    )  # the next slot is far off, too
    first = cron.add(every_ms=every, missed=missed) - 3 * every
    cron.redis.zadd(store.NEXT, {"tick": first})
    process = cron.start()
    wait(lambda: cron.redis.zscore(store.NEXT, "tick") == first + 3 * every)
    wait(lambda: not cron.redis.zcard("draftmill:cron:open"))
    cron.stop(process)
    assert cron.found().keys() == {cron.batch_of(first + n * every) for n in expected}


def test_results_are_written_by_whoever_is_there(cron: Cron) -> None:
    slot = cron.add(every_ms=YEAR, output="out/%Y-%m-%dT%H.jsonl") - YEAR
    cron.redis.zadd(store.NEXT, {"tick": slot})
    process = cron.start()
    wait(lambda: cron.redis.hlen(store.BATCH))
    process.send_signal(signal.SIGTERM)  # while the batch waits for a worker
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "Error: stopped with open slots; other schedulers, or the next one, go on with them"
    cron.shell.write("in.jsonl", LINE.replace("say it", "something else by now"))
    process = cron.start()
    worker = subprocess.Popen(
        Settings(cron.url, str(cron.shell.folder / "spool")).command(), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    wait(cron.last)
    worker.kill()
    worker.wait()
    cron.stop(process)
    (written,) = (cron.shell.folder / "out").glob("*.jsonl")
    assert written.stem == spoken(slot)[:13]
    assert [orjson.loads(line)["custom_id"] for line in written.read_bytes().splitlines()] == ["a"]
    last = cron.last()
    assert last
    assert (last.code, last.said) == (0, f"1 result in out/{written.name}")
    assert len(cron.found()) == 1


def test_what_cannot_be_submitted_is_said_and_the_next_slot_comes(cron: Cron) -> None:
    cron.add(every_ms=1000)
    (cron.shell.folder / "in.jsonl").unlink()
    process = cron.start()
    wait(cron.last)
    shown = cron("list").stdout
    assert "cannot read 'in.jsonl': no such file or folder" in shown
    cron.shell.write("in.jsonl", LINE)
    wait(cron.found)
    assert cron("remove", "tick").returncode == 0
    wait(lambda: not cron.redis.zcard("draftmill:cron:open"))
    said = cron.stop(process)
    assert "Z: cannot read 'in.jsonl': no such file or folder\n" in said
    assert "Z: submitted as batch_" in said


def test_bad_lines_are_no_failure_of_a_slot(cron: Cron) -> None:
    slot = cron.add(every_ms=YEAR, missed="one") - YEAR
    cron.shell.write("in.jsonl", LINE + "not json\n")
    cron.redis.zadd(store.NEXT, {"tick": slot})
    process = cron.start()
    wait(cron.last)
    assert "Bad line 2: not JSON" in cron.stop(process)
    last = cron.last()
    assert last
    assert (last.code, last.said, last.outcome, last.bad) == (4, f"submitted as {last.batch}", "partial", 1)


@pytest.mark.parametrize(
    "changed",
    [
        {"arguments": ["in.jsonl", "--redis-url", "redis://elsewhere"]},
        {"arguments": ["/etc/passwd"]},
        {"arguments": ["in.jsonl", "--schema", "/etc/passwd"]},
        {"arguments": ["in.jsonl"], "output": "../%Y%m%dT%H%M%S.jsonl"},
        {"command": "touch hacked"},
        {"name": "other"},
        {"cron": "R R * * *", "every_ms": None},
    ],
)
def test_a_schedule_that_was_tampered_with_runs_nothing(cron: Cron, changed: dict[str, Any]) -> None:
    cron.add(every_ms=YEAR)
    kept: Any = cron.redis.hget(store.CRON, "tick")
    cron.redis.hset(store.CRON, mapping={"tick": orjson.dumps(orjson.loads(kept) | changed)})
    cron.redis.zadd(store.NEXT, {"tick": 0})
    schedules = entries.read(cron.redis, check_arguments)
    assert schedules.unusable.keys() == {"tick"}
    assert not store.look(cron.redis, "me", 1.0, 4, schedules.due).taken


def test_what_users_read(cron: Cron) -> None:
    cron.shell.write("in.jsonl", LINE)
    empty = cron("list")
    assert empty.stdout == "No schedules here. Make one: draftmill cron add NAME --every 1h submit INPUT\n"
    added = cron(
        "add", "daily", "--cron", "0 9 * * *", "--timezone", "Asia/Tokyo", "submit", "in.jsonl", "--top-k", "3"
    )
    assert added.returncode == 2  # --redis-url is at the end, so it is submit's
    assert "a schedule cannot have --redis-url" in added.stderr
    url = ("--redis-url", cron.url)
    added = cron.shell("cron", "add", "daily", *url, "--cron", "0 9 * * *", "--timezone", "Asia/Tokyo", "--", "submit",
                       "in.jsonl", "--system", "Be brief.")  # fmt: skip
    assert added.stdout.startswith("Added daily: first slot 20"), added.stderr
    assert added.stdout.endswith(" 09:00:00 JST; `draftmill cron run` runs it\n")
    lines = cron("list").stdout.splitlines()
    assert lines[0] == "daily"
    assert lines[1] == "  when    cron '0 9 * * *', Asia/Tokyo; of missed slots the last runs"
    assert lines[2].endswith("09:00:00 JST")
    assert lines[3] == "  submit  in.jsonl --system 'Be brief.'"
    (report,) = orjson.loads(cron("list", "--json").stdout)
    assert (report["name"], report["cron"], report["last"]) == ("daily", "0 9 * * *", None)
    assert report["next"] % (24 * 3_600_000) == 0  # 9:00 in Tokyo is midnight in UTC
    assert cron("remove", "daily").stdout == "Removed daily\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "x", "--cron", "61 * * * *", "submit", "a"), "--cron '61 * * * *': [61 * * * *] is not acceptable"),
        (("add", "x", "--every", "soon", "submit", "a"), "Invalid value for '--every': 'soon' is no length of time"),
        (("add", "x", "submit", "a"), "give either --every or --cron"),
        (("add", "x", "--every", "1h", "--cron", "0 * * * *", "submit", "a"), "give either --every or --cron"),
        (("add", "x", "--every", "1h"), "say what to submit"),
        (("add", "x y", "--every", "1h", "submit", "a"), "Invalid value for 'NAME': 'x y' is no name"),
        (("add", "x", "--every", "1h", "submit", "a", "--max-tokens", "0"), "Invalid value for '--max-tokens'"),
        (("add", "x", "--every", "1h", "--missed", "some", "submit", "a"), "Invalid value for '--missed'"),
        (("add", "known", "--every", "1h", "submit", "a"), "there is a schedule 'known' already; to replace it"),
        (("remove", "x"), "no schedule 'x' here; `draftmill cron list` lists them"),
        (("run", "--folder", "nowhere"), "Invalid value for '--folder'"),
    ],
)
def test_mistakes_are_one_line(cron: Cron, arguments: tuple[str, ...], message: str) -> None:
    entries.add(cron.redis, Schedule(name="known", every_ms=YEAR, arguments=("in.jsonl",)))
    cron.shell.environment["REDIS_URL"] = cron.url
    done = cron.shell("cron", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {message}")
    assert done.stderr.count("\n") == 1
