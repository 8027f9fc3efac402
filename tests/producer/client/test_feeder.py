"""Submitters that leave: what finds no room in the queue is fed by somebody else, and no line twice."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis as redis_py
from click.testing import CliRunner

from draftmill.producer.cli.main import main
from draftmill.producer.client import submission as submitting
from draftmill.producer.client.client import Client
from draftmill.producer.client.fleet_feeder import FleetFeeder
from draftmill.producer.client.patience import Patience
from draftmill.producer.client.submission import Feed, NoRoom, Submission, plan
from draftmill.producer.input import chunks
from draftmill.producer.input.dataset import Dataset
from draftmill.producer.input.lines import Defaults
from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.errors import UserError
from draftmill.producer.queue.leases import JobQueue, Outcome
from draftmill.producer.queue.rest import duty, stored
from tests.producer.conftest import Shell
from tests.redis_server import RedisServer

PAIR = "some-pair"
LINES = 320
CHUNK = 50


@pytest.fixture
def submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submission:
    """320 lines, of which about 100 may be in the queue."""
    monkeypatch.setattr(submitting, "WINDOW", 99)
    monkeypatch.setattr(chunks, "CHUNK", CHUNK)
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(b'{"id": "%d", "prompt": "hello %d"}\n' % (n, n) for n in range(LINES)))
    dataset = Dataset(str(path), PAIR, Defaults())
    return plan(dataset, dataset.survey(), "ann")


def detached(redis: redis_py.Redis, submission: Submission, retry_failed: bool = False, reason: str = "") -> Feed:
    """What a submitter does that leaves; it is gone afterwards."""
    feed = Feed(submission, Patience(redis), retry_failed=retry_failed, reason=reason)
    feed.begin()
    feed.detach()
    return feed


def work(redis: redis_py.Redis, status: str = "done") -> set[str]:
    """Runs what is queued; the custom_ids, each of which ran once."""
    ran: list[str] = []
    worker = JobQueue(redis, "w", PAIR, 60)
    while jobs := worker.claim(50):
        lines = [b'{"custom_id":"%b","error":{"code":"x"}}' % job.custom_id.encode() for job in jobs]
        outcomes = [Outcome(job, status, line) for job, line in zip(jobs, lines, strict=True)]  # pyright: ignore[reportArgumentType]
        assert all(worker.commit(outcomes))
        ran += [job.custom_id for job in jobs]
    assert len(ran) == len(set(ran))
    return set(ran)


def state_of(redis: redis_py.Redis, submission: Submission) -> batches.BatchStatus:
    found = batches.status(redis, submission.info.id)
    assert found
    return found


def feed_and_work(redis: redis_py.Redis, *feeders: FleetFeeder) -> set[str]:
    """Lets feeders and a worker take turns until nothing is left; the lines that ran, none of them twice."""
    ran: set[str] = set()
    while more := work(redis):
        assert not ran & more
        ran |= more
        for feeder in feeders:
            feeder.look()
    return ran


def test_a_feeder_queues_what_a_submitter_left(redis: redis_py.Redis, submission: Submission) -> None:
    feed = detached(redis, submission)
    batch = submission.info.id
    assert (feed.sent.new, feed.left) == (100, LINES - 100)
    assert sum(name.lines for name in stored.names(redis, batch)) == feed.left
    assert "220 lines wait for a feeder" in duty.unfed(redis, batch)
    feeder = FleetFeeder(redis)
    feeder.look()
    assert state_of(redis, submission).submitted == 100  # there is no room yet
    assert duty.unfed(redis, batch) == ""
    assert feed_and_work(redis, feeder) == {str(n) for n in range(LINES)}
    state = state_of(redis, submission)
    assert (state.done, state.complete) == (LINES, True)
    assert not redis.exists(wire.rest_key(batch), wire.RESTS)
    results = [result for result in batches.results(redis, batch)]
    assert len({result.n for result in results}) == len(results) == LINES


def test_two_feeders_and_a_submitter_that_comes_back_queue_nothing_twice(
    redis: redis_py.Redis, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    detached(redis, submission)
    monkeypatch.setattr(duty, "take", lambda *_: True)  # each believes that it has the duty
    one, two = FleetFeeder(redis), FleetFeeder(redis)
    ran = work(redis)
    one.look()
    two.look()
    ran |= work(redis)
    again = detached(redis, submission)
    assert (again.sent.done, again.sent.new) == (200, 100)
    ran |= feed_and_work(redis, one, two) | work(redis)
    assert len(ran) == state_of(redis, submission).done == LINES


def test_a_feeder_that_dies_between_queuing_and_dropping_loses_nothing(
    redis: redis_py.Redis, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    detached(redis, submission)
    ran = work(redis)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stored, "fed", die)
        with pytest.raises(KeyboardInterrupt):
            FleetFeeder(redis).look()
    more = work(redis)
    assert len(more) == CHUNK
    redis.delete(wire.FEEDER)  # its duty runs out
    another = FleetFeeder(redis)
    another.look()
    assert ran | more | feed_and_work(redis, another) == {str(n) for n in range(LINES)}
    assert state_of(redis, submission).done == LINES


def test_a_program_leaves_lines_to_a_feeder(
    redis: redis_py.Redis, redis_server: RedisServer, submission: Submission
) -> None:
    with Client(redis_server.url) as client:
        batch = client.submit(submission.info.source, pair=PAIR, detach=True)
    assert sum(name.lines for name in stored.names(redis, batch.id)) == LINES - 100
    with Client(redis_server.url) as client:
        found, feeder = client.batch(batch.id), FleetFeeder(redis)
        assert len(feed_and_work(redis, feeder)) == LINES
        assert found.wait(timeout=20).done == LINES


def test_one_feeder_has_the_duty(redis: redis_py.Redis) -> None:
    assert duty.take(redis, "one")
    assert not duty.take(redis, "two")
    assert duty.take(redis, "one")
    assert 0 < redis.ttl(wire.FEEDER) <= duty.DUTY_SECONDS  # pyright: ignore[reportOperatorIssue]
    duty.leave(redis, "two")
    assert duty.on_duty(redis) == "one"
    duty.leave(redis, "one")
    time.sleep(0.01)
    assert duty.take(redis, "two")


def test_cancelling_drops_what_is_left(
    redis: redis_py.Redis, redis_server: RedisServer, submission: Submission
) -> None:
    detached(redis, submission)
    at = ("--redis-url", redis_server.url)
    cancelled = CliRunner().invoke(main, ("cancel", submission.info.id, *at)).stdout.splitlines()
    assert cancelled[1] == "220 lines that nobody had queued yet went with them, and will have no result"
    assert not redis.exists(wire.rest_key(submission.info.id))
    FleetFeeder(redis).look()
    assert not redis.exists(wire.RESTS)
    state = state_of(redis, submission)
    assert (state.cancelled, state.complete) == (100, True)
    with pytest.raises(UserError, match="was cancelled"):
        detached(redis, submission)


def test_failed_lines_are_left_to_a_feeder_too(redis: redis_py.Redis, submission: Submission) -> None:
    detached(redis, submission)
    feeder = FleetFeeder(redis)
    while work(redis, "failed"):
        feeder.look()
    assert state_of(redis, submission).failed == LINES
    others = detached(redis, submission, retry_failed=True, reason="memory")
    assert (others.sent, others.left) == (batches.Submitted(done=LINES), 0)
    again = detached(redis, submission, retry_failed=True, reason="x:")
    assert (again.sent.retried, again.left) == (100, LINES - 100)
    assert len(feed_and_work(redis, feeder)) == LINES
    state = state_of(redis, submission)
    assert (state.done, state.failed, state.complete) == (LINES, 0, True)


def test_what_redis_may_hold_for_feeders_is_limited(
    redis: redis_py.Redis, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stored.most_bytes(redis) == 2**30
    redis.config_set("maxmemory", "1gb")
    assert stored.most_bytes(redis) == 2**28
    redis.config_set("maxmemory", 0)
    monkeypatch.setattr(stored, "MOST_BYTES", 1500)
    with pytest.raises(NoRoom, match=r"(?s)0 MB for feeders.*lines of .*in.jsonl are handed over"):
        detached(redis, submission)
    assert 0 < redis.hlen(wire.rest_key(submission.info.id)) < 4  # pyright: ignore[reportOperatorIssue]
    feeder = FleetFeeder(redis)
    for _ in range(10):
        work(redis)
        feeder.look()
        try:
            detached(redis, submission)  # what was queued before is not handed over again
        except NoRoom:
            continue
    assert feed_and_work(redis, feeder) == set()
    assert state_of(redis, submission).done == LINES


def test_a_damaged_chunk_ends_no_feeder(redis: redis_py.Redis, submission: Submission) -> None:
    detached(redis, submission)
    key, (first, *_) = wire.rest_key(submission.info.id), stored.names(redis, submission.info.id)
    redis.hset(key, first.field.decode(), b"x" * 100)
    redis.hset(key, "what", b"x")
    ran = feed_and_work(redis, FleetFeeder(redis))
    assert len(ran) == LINES - CHUNK


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_closed_laptop_stalls_nothing(
    shell: Shell, redis: redis_py.Redis, redis_server: RedisServer, submission: Submission
) -> None:
    """The commands, with a feeder that is killed."""
    command = ("submit", submission.info.source, "--pair", PAIR, "--detach", "--redis-url", redis_server.url)
    left = CliRunner().invoke(main, command)
    batch = left.stdout.strip()
    assert left.exit_code == 0, left.stderr
    assert "Note: 220 lines left to a feeder" in left.stderr
    assert "none is live; on a machine that stays on: draftmill feed" in left.stderr
    shell.environment["REDIS_URL"] = redis_server.url
    assert "220 lines wait for a feeder" in shell("status", batch).stdout
    Path(submission.info.source).unlink()
    first = shell.start("feed")
    wait_until(lambda: redis.exists(wire.FEEDER))
    first.kill()
    first.communicate()
    redis.pexpire(wire.FEEDER, 1)  # its duty runs out
    with shell.start("feed") as second:
        assert second.stdout
        assert second.stdout.readline().startswith("feeder ")
        wait_until(lambda: not redis.exists(wire.rest_key(batch)))
        second.send_signal(signal.SIGTERM)
        _, errors = second.communicate(timeout=20)
        assert second.returncode == 0, errors
    assert work(redis) == {str(n) for n in range(LINES)}
    assert not redis.exists(wire.FEEDER)
