"""Tokens and watt-hours by user: what lines that ended had, whatever becomes of their batches."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import orjson
from click.testing import CliRunner

from draftmill.producer.cli.main import main
from draftmill.producer.queue import batches, fleet
from draftmill.producer.queue.fleet import Spent
from draftmill.producer.queue.leases import Outcome
from tests.producer.queue.helpers import lapse, outcome, queue
from tests.worker.conftest import ROOT, Mill
from tests.worker.run_worker import Settings


def test_tokens_of_each_user_are_counted_once(mill: Mill) -> None:
    assert fleet.spent(mill.redis) == []
    w, other = queue(mill, "w"), queue(mill, "other")
    mill.submit(2, batch="a", user="ann lee")
    mill.submit(2, batch="b", user="bob")
    jobs = w.claim(3)
    assert all(w.commit([outcome(job) for job in jobs]))
    assert all(w.commit([outcome(job) for job in jobs]))  # sent again: its answer was lost
    late = w.claim(1)
    lapse(mill, *late)
    other.reap()
    (again,) = other.claim(1)
    assert w.commit([outcome(job) for job in late]) == [False]
    assert other.commit([Outcome(again, "failed", b"{}", 7, 0)]) == [True]
    by_user = {found.user: found for found in fleet.spent(mill.redis)}
    assert sum(found.prompt_tokens for found in by_user.values()) == 3 * 3 + 7
    assert sum(found.generated_tokens for found in by_user.values()) == 3 * 5
    for batch in ("a", "b"):
        assert batches.forget(mill.redis, batch)
    assert {found.user: found for found in fleet.spent(mill.redis)} == by_user
    assert by_user.keys() == {"ann lee", "bob"}


def test_status_shows_them(mill: Mill) -> None:
    def status(*words: str) -> str:
        return CliRunner().invoke(main, ("status", *words), env={"REDIS_URL": mill.server.url}).output

    assert status("--users") == "Nobody had any tokens here\n"
    mill.submit(1000, user="ann")
    w = queue(mill, "w")
    for _ in range(4):
        w.commit([outcome(job) for job in w.claim(250)])
    ann = {"user": "ann", "prompt_tokens": 3000, "generated_tokens": 5000, "metered_tokens": 0, "watt_hours": None}
    assert orjson.loads(status("--users", "--json")) == [ann]
    assert status("--users").splitlines()[1].split() == ["3,000", "5,000", "-", "ann"]
    assert "leave out BATCH" in status("b", "--users")
    assert fleet.spent(mill.redis) == [Spent("ann", 3000, 5000)]
    mill.submit(2, batch="c", user="ann")
    metered, unknown = w.claim(2)
    for _ in range(2):  # sent again: its answer was lost
        w.commit([replace(outcome(metered), joules=4500.25), outcome(unknown)])
    assert fleet.spent(mill.redis) == [Spent("ann", 3006, 5010, 5, 4500.25)]
    head, row, note = status("--users").splitlines()
    assert head.split() == ["PROMPT", "TOKENS", "GENERATED", "WATT-HOURS", "USER"]
    assert row.split() == ["3,006", "5,010", "1.250", "ann"]
    assert note.endswith("power is known: 5 of 5,010 generated tokens are theirs")


def test_what_a_machine_draws_is_shared_by_tokens(mill: Mill) -> None:
    mill.submit(40, tokens=10, batch="a", user="ann")
    mill.submit(40, tokens=30, batch="b", user="bob", prompt="say it " * 5)  # 40 tokens a line; ann has 12
    settings = Settings(mill.server.url, str(mill.spool), rows=8, round_seconds=0.01, watts=100)
    process = subprocess.Popen(settings.command(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for batch in ("a", "b"):
            mill.wait(lambda state: state.complete, batch=batch)
        (worker,) = fleet.reports(mill.redis)
        ann, bob = fleet.spent(mill.redis)
        drawn = 100 * (worker.number("seen") - worker.number("started"))
        assert (ann.metered_tokens, bob.metered_tokens) == (400, 1200)
        assert ann.joules
        assert bob.joules
        assert 2.7 < bob.joules / ann.joules < 4.2
        assert 0.6 * drawn < ann.joules + bob.joules < 1.1 * drawn + 100
    finally:
        process.kill()
        process.wait()
