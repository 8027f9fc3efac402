"""How lines are queued: in which order, how many at a time, and none of a file that changed meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import redis as redis_py

from draftmill.producer.client import submission as submitting
from draftmill.producer.client.patience import Patience
from draftmill.producer.client.submission import BEGINNING, Feed, Submission, plan, submit
from draftmill.producer.input.chunks import CHUNK, CHUNK_BYTES
from draftmill.producer.input.dataset import Dataset
from draftmill.producer.input.lines import Defaults
from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.errors import UserError
from tests.producer.conftest import Shell
from tests.redis_server import RedisServer


def test_lines_of_one_template_follow_each_other(redis: redis_py.Redis, tmp_path: Path) -> None:
    templates = [f"{name}: " + "please " * (BEGINNING // 6) for name in ("sum up", "translate")]
    lines = [{"id": f"{n}", "prompt": templates[n % 2] + f"text {9 - n}"} for n in range(6)]
    lines.insert(3, {"id": "alone", "prompt": "hello"})
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    submission = planned(path)
    assert submit(Patience(redis), submission).new == 7
    batch = submission.info.id
    queued: Any = redis.lrange(f"rq:queue:{wire.queue_name('some-pair', batch)}", 0, -1)
    names = {wire.job_id(batch, line["id"]): line["id"] for line in lines}
    assert [names[job.decode()] for job in queued] == ["0", "2", "4", "1", "3", "5", "alone"]


LINES = [orjson.dumps({"id": f"{n}", "prompt": f"hello {n}"}) + b"\n" for n in range(1200)]


@pytest.mark.parametrize(
    ("changed", "queued"),
    [
        (LINES[:4], 0),
        ([*LINES[:700], LINES[700].replace(b"hello", b"HELLO"), *LINES[701:]], 500),
        ([*LINES[:500], b"\n", *LINES[500:]], 500),  # the numbers of lines change
        ([*LINES, LINES[0].replace(b'"0"', b'"x"')], 1000),
        (LINES[:1000], 1000),
    ],
    ids=["cut short", "one prompt", "a blank line", "one more", "a chunk less"],
)
def test_nothing_of_a_file_that_changed_meanwhile_is_queued(
    redis: redis_py.Redis, tmp_path: Path, changed: list[bytes], queued: int
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(LINES))
    submission = planned(path)
    path.write_bytes(b"".join(changed))
    with pytest.raises(UserError, match="changed while it was submitted"):
        submit(Patience(redis), submission)
    state = batches.status(redis, submission.info.id)
    assert state
    assert state.submitted == queued


def long_lines(count: int, size: int) -> bytes:
    return b"".join(b'{"id": "%d", "prompt": "%d %b"}\n' % (n, n, b"x" * size) for n in range(count))


def test_long_lines_are_submitted_a_few_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(long_lines(20, CHUNK_BYTES // 3) + long_lines(1200, 10).replace(b'"id": "', b'"id": "s'))
    submission = planned(path)
    chunks = list(submission.dataset.chunks(submission.survey))
    assert [len(chunk.jobs) for chunk in chunks] == [*[3] * 6, CHUNK - 18, CHUNK, 220]
    assert max(chunk.size for chunk in chunks) < CHUNK_BYTES * 4 / 3
    assert sum(chunk.size for chunk in chunks) == submission.survey.size
    path.write_bytes(long_lines(19, CHUNK_BYTES // 3) + b'{"id": "19", "prompt": "another"}\n')
    seen: list[int] = []
    with pytest.raises(UserError, match="changed while it was submitted"):
        seen.extend(len(chunk.jobs) for chunk in submission.dataset.chunks(submission.survey))
    assert seen == [3] * 6


def test_of_long_lines_fewer_are_queued_at_a_time(
    redis: redis_py.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(long_lines(20, CHUNK_BYTES // 2))
    monkeypatch.setattr(submitting, "WINDOW_BYTES", 4 * CHUNK_BYTES)
    submission = planned(path)
    feed = Feed(submission, Patience(redis))
    state = feed.begin()
    while feed.advance(state):
        state = batches.status(redis, submission.info.id)
        assert state
    assert not feed.exhausted
    assert 8 <= state.open <= 10
    full: list[int] = []

    def cancel(state: batches.BatchStatus) -> None:
        full.append(state.open)
        batches.cancel(redis, state.id)

    with pytest.raises(UserError, match="cancelled while it was submitted"):
        feed.to_end(full=cancel)
    assert full == [state.open]


def test_a_batch_is_its_lines_and_its_user(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(LINES[:3]))
    first = planned(path)
    assert planned(path).info.id == first.info.id != planned(path, "bob").info.id
    path.write_bytes(b"\n" + b"".join(LINES[:3]))  # the queue knows lines by their numbers, OUT by their ids
    second = planned(path)
    assert second.info.id != first.info.id
    assert second.survey.content == first.survey.content


def planned(path: Path, user: str = "ann") -> Submission:
    dataset = Dataset(str(path), "some-pair", Defaults())
    return plan(dataset, dataset.survey(), user)


def test_results_are_not_written_over_their_input(shell: Shell) -> None:
    shell.write("in.jsonl", b'{"prompt": "hello"}\n')
    shell.write("q.jsonl.errors.jsonl", b'{"prompt": "hello"}\n')
    (shell.folder / "link.jsonl").symlink_to("in.jsonl")
    for source, out in (("in.jsonl", "in.jsonl"), ("in.jsonl", "link.jsonl"), ("q.jsonl.errors.jsonl", "q.jsonl")):
        run = shell("run", source, "-o", out, "--force")
        assert run.returncode == 2
        assert run.stderr.startswith("Error: '")
        assert run.stderr.endswith("would be written over and is INPUT; name another OUT\n")
        assert shell.lines(source) == [b'{"prompt": "hello"}']


def test_a_mistyped_pair_is_noticed(shell: Shell, redis: redis_py.Redis, redis_server: RedisServer) -> None:
    shell.environment["REDIS_URL"] = redis_server.url
    shell.write("in.jsonl", b'{"prompt": "hello"}\n')
    assert shell("submit", "in.jsonl", "--pair", "smollm2-135").stderr.endswith("; did you mean 'smollm2-135m'?\n")
    scheduled = shell("workers", "pair", "mini-3", "smollm2-135")
    assert scheduled.returncode == 0
    assert "no worker of a machine called mini-3 is known yet" in scheduled.stderr
    assert "did you mean 'smollm2-135m'?" in scheduled.stderr
