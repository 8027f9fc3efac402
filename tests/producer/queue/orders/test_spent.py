"""Tokens by user: what lines that ended had, whatever becomes of their batches."""

from __future__ import annotations

import orjson
from click.testing import CliRunner

from draftmill.producer.cli.main import main
from draftmill.producer.queue import batches, fleet
from draftmill.producer.queue.fleet import Spent
from draftmill.producer.queue.leases import Outcome
from tests.producer.queue.helpers import lapse, outcome, queue
from tests.worker.conftest import Mill


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
    assert orjson.loads(status("--users", "--json")) == [
        {"user": "ann", "prompt_tokens": 3000, "generated_tokens": 5000}
    ]
    assert status("--users").splitlines()[1].split() == ["3,000", "5,000", "ann"]
    assert "leave out BATCH" in status("b", "--users")
    assert fleet.spent(mill.redis) == [Spent("ann", 3000, 5000)]
