"""Which lines failed and why: as workers and scripts record them, in groups, and as `draftmill failures` shows them."""

from __future__ import annotations

import time
from typing import Any

import orjson
from click.testing import CliRunner, Result

from draftmill.producer.cli.main import main
from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.failed.failures import Failure, count, failures
from draftmill.producer.queue.failed.groups import grouped
from draftmill.producer.queue.leases import Claimed, Outcome
from tests.producer.queue.helpers import lose, queue
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR


def failed(job: Claimed, code: str, message: str) -> Outcome:
    line = {"custom_id": job.custom_id, "error": {"code": code, "message": message}}
    return Outcome(job, "failed", orjson.dumps(line), reason=message)


def known(mill: Mill, batch: str = "b") -> dict[str, Failure]:
    found = list(failures(mill.redis, batch))
    assert len(found) == count(mill.redis, batch)
    return {one.custom_id: one for one in found}


def command(mill: Mill, *words: str) -> Result:
    return CliRunner().invoke(main, ("failures", *words), env={"REDIS_URL": mill.server.url})


def test_each_failure_says_why_where_and_after_how_many_tries(mill: Mill) -> None:
    mill.submit(3)
    w = queue(mill, "mini-1")
    lost, refused, stopped = w.claim(3)
    lose(mill, w, lost)
    assert w.commit([Outcome(stopped, "cancelled", b'{"error": {"code": "request_stopped", "message": "x"}}')])
    long = f"a\nline {'ü' * 300} end"
    w.blame([refused])
    assert w.commit([failed(refused, "invalid_request", long)]) == [True]
    for _ in range(wire.MAX_LEASES - 1):
        (lost,) = w.claim(1)
        lose(mill, w, lost)
    found = known(mill)
    assert set(found) == {"r-0", "r-1", "r-2"}
    assert found["r-1"].message == f"invalid_request: a line {'ü' * 300} end"
    assert found["r-1"].reason == found["r-1"].message[: len(found["r-1"].reason)]
    assert len(found["r-1"].reason.encode()) in (199, 200)
    assert (found["r-1"].n, found["r-1"].pair, found["r-1"].worker) == (2, wire.slug(PAIR), "mini-1")
    assert (found["r-1"].attempts, found["r-0"].attempts) == (1, wire.MAX_LEASES)
    assert found["r-0"].reason.startswith("lost_leases: given up")
    assert time.time() - 60 < (found["r-0"].at or 0) < time.time() + 1


def test_they_stay_after_they_are_collected_until_their_lines_run_again(mill: Mill) -> None:
    mill.submit(2)
    w = queue(mill, "w")
    w.commit([failed(job, "x", "y") for job in w.claim(2)])
    batches.acknowledge(mill.redis, "b", list(batches.results(mill.redis, "b")))
    assert set(known(mill)) == {"r-0", "r-1"}
    info = batches.BatchInfo("b", PAIR, "normal", 2)
    body = wire.JobBody(batch="b", custom_id="r-0", pair=PAIR, prompts=("say it",), line=1)
    assert batches.submit_chunk(mill.redis, info, [body], retry_failed=True, reason="X: Y").retried == 1
    assert set(known(mill)) == {"r-1"}


def test_what_earlier_versions_recorded_is_read(mill: Mill) -> None:
    early: Any = {"b-1": "failed 7 1-0 x: in\ntwo lines", "b-2": "cancelled 8 2-0 ", "b-3": "failed 9 0-0", "b-4": "?"}
    mill.redis.hset(wire.failures_key("b"), mapping=early)
    found = sorted(failures(mill.redis, "b"), key=lambda one: one.n)
    assert [(one.n, one.reason, one.attempts, one.at) for one in found] == [
        (7, "x: in", 0, None),
        (8, "", 0, None),
        (9, "", 0, None),
    ]


def test_reasons_that_differ_in_numbers_and_quoted_words_are_one(mill: Mill) -> None:
    mill.submit(12)
    w = queue(mill, "mini-1")
    jobs = w.claim(12)
    w.commit(
        [
            failed(job, "invalid_request", f"'x{n}' has 1,{n} tokens, the limit is 2.5.")
            for n, job in enumerate(jobs[:9])
        ]
    )
    w.commit([failed(job, "invalid_request", "'x' has 2") for job in jobs[9:11]])
    w.commit([failed(jobs[11], "lost_leases", "RQ's tools")])
    first, second, third = groups = grouped(failures(mill.redis, "b"))
    assert (first.kind, first.count) == ("invalid_request: … has … tokens, the limit is ….", 9)
    assert first.first.custom_id == jobs[0].custom_id
    assert (second.count, third.kind) == (2, "lost_leases: RQ's tools")
    assert [group.search(groups) for group in groups] == ["tokens, the limit is", "invalid_request:", third.kind]
    for group in (first, third):
        text = group.search(groups)
        assert sum(one.is_for(text) for one in failures(mill.redis, "b")) == group.count


def test_the_command_shows_reasons_or_lines(mill: Mill) -> None:
    mill.submit(30)
    assert command(mill, "b").output == "No line failed\n"
    w = queue(mill, "mini-1")
    w.commit([failed(job, "engine_failed", f"out of memory in round {n}") for n, job in enumerate(w.claim(25))])
    other = queue(mill, "mini-2")
    other.commit([failed(job, "x", "it's [odd]") for job in other.claim(1)])
    said = command(mill, "b").output.splitlines()
    assert said[0] == "26 of 30 lines failed"
    assert said[1].split() == ["LINES", "PAIR", "WORKER", "REASON"]
    assert said[2].split(maxsplit=3) == ["25", PAIR, "mini-1", "engine_failed: out of memory in round …"]
    assert said[-1].endswith("--retry-failed --reason 'engine_failed: out of memory in round'")
    narrowed = command(mill, "b", "--reason", "[odd]").output.splitlines()
    assert narrowed[0] == "1 of 26 failed lines"
    lines = command(mill, "b", "--reason", "MEMORY", "--lines", "20").output.splitlines()
    assert len(lines) == 1 + 20 + 1
    assert lines[1].split()[:4] == ["1", "r-0", PAIR, "mini-1"]
    assert lines[1].endswith("engine_failed: out of memory in round 0")
    assert command(mill, "b", "--pair", "other").output == "No line failed for that\n"
    (one,) = orjson.loads(command(mill, "b", "--lines", "9", "--reason", "odd", "--json").output)
    assert one["message"] == "x: it's [odd]"
    assert (one["worker"], one["pair"], one["line"]) == ("mini-2", PAIR, 26)
    first, _ = orjson.loads(command(mill, "b", "--json").output)
    assert (first["lines"], first["workers"], first["example"]["line"]) == (25, {"mini-1": 25}, 1)
    assert command(mill, "b2").exit_code == 2
