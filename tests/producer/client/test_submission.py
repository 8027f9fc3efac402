"""The order in which lines are queued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import redis as redis_py

from draftmill.producer.client.submission import BEGINNING, submit
from draftmill.producer.input.dataset import Dataset
from draftmill.producer.input.lines import Defaults
from draftmill.producer.queue import wire
from draftmill.producer.queue.batches import BatchInfo
from draftmill.producer.queue.errors import UserError
from tests.producer.conftest import Shell
from tests.redis_server import RedisServer


def test_lines_of_one_template_follow_each_other(redis: redis_py.Redis, tmp_path: Path) -> None:
    templates = [f"{name}: " + "please " * (BEGINNING // 6) for name in ("sum up", "translate")]
    lines = [{"id": f"{n}", "prompt": templates[n % 2] + f"text {9 - n}"} for n in range(6)]
    lines.insert(3, {"id": "alone", "prompt": "hello"})
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    dataset = Dataset(str(path), "some-pair", Defaults())
    batch = BatchInfo(dataset.survey().batch, "some-pair", "normal", 7)
    assert submit(redis, dataset, batch, lambda state: None).new == 7
    queued: Any = redis.lrange(f"rq:queue:{wire.queue_name('some-pair', batch.id)}", 0, -1)
    names = {wire.job_id(batch.id, line["id"]): line["id"] for line in lines}
    assert [names[job.decode()] for job in queued] == ["0", "2", "4", "1", "3", "5", "alone"]


def test_a_file_that_changes_meanwhile_is_told(redis: redis_py.Redis, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(orjson.dumps({"id": f"{n}", "prompt": "hello"}) + b"\n" for n in range(9)))
    dataset = Dataset(str(path), "some-pair", Defaults())
    batch = BatchInfo(dataset.survey().batch, "some-pair", "normal", 9)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    with pytest.raises(UserError, match="changed while it was submitted: 9 lines at first, then 4"):
        submit(redis, dataset, batch, lambda state: None)


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
    assert shell("submit", "in.jsonl", "--pair", "qwen3-4bb").stderr.endswith("; did you mean 'qwen3-4b'?\n")
    scheduled = shell("workers", "pair", "mini-3", "qwen3-4bb")
    assert scheduled.returncode == 0
    assert "no worker of a machine called mini-3 is known yet" in scheduled.stderr
    assert "did you mean 'qwen3-4b'?" in scheduled.stderr
