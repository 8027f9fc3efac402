"""`draftmill run` under an OUT that has lines which its Redis does not know, and what becomes of the batch there."""

from __future__ import annotations

import re

import orjson
import pytest
import redis as redis_py

from draftmill.producer.queue import batches
from draftmill.producer.queue.batches import BatchStatus
from draftmill.producer.queue.leases import JobQueue
from tests.producer.cli.test_run import model as model  # the fixture
from tests.producer.conftest import Shell, private_shell
from tests.redis_server import RedisServer

COUNT = 12


@pytest.fixture(scope="module")
def files(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run with the private Redis leaves in its folder."""
    folder = tmp_path_factory.mktemp("first")
    with private_shell(folder) as shell:
        lines = [orjson.dumps({"id": f"r-{n}", "prompt": f"Say {n}", "max_tokens": 3}) for n in range(COUNT)]
        shell.write("in.jsonl", b"\n".join(lines))
        done = shell("run", "in.jsonl", "-o", "out.jsonl", "--pair", model, "--sorted")
        assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def command(shell: Shell, model: str, files: dict[str, bytes]) -> list[str]:
    """A run whose OUT has all lines but the last two, from the private Redis."""
    for name, content in files.items():
        shell.write(name, content)
    shell.write("out.jsonl", b"".join(line + b"\n" for line in shell.lines("out.jsonl")[: COUNT - 2]))
    return ["run", "in.jsonl", "-o", "out.jsonl", "--pair", model]


def has_all(shell: Shell) -> bool:
    return sorted(orjson.loads(line)["custom_id"] for line in shell.lines("out.jsonl")) == sorted(
        f"r-{n}" for n in range(COUNT)
    )


def only(redis: redis_py.Redis) -> BatchStatus:
    (state,) = batches.list_batches(redis)
    return state


def test_what_somebody_queued_elsewhere_is_neither_cancelled_nor_generated_again(
    shell: Shell, command: list[str], model: str, redis: redis_py.Redis, redis_server: RedisServer
) -> None:
    kept = shell.lines("out.jsonl")
    shell.environment["REDIS_URL"] = redis_server.url
    batch = shell("submit", "in.jsonl", "--pair", model).stdout.strip()
    (leased,) = JobQueue(redis, "dead", model, lease=600).claim(1)
    assert leased.custom_id == "r-0"
    done = shell(*command)
    assert done.returncode == 0, done.stderr
    assert has_all(shell)
    assert shell.lines("out.jsonl")[: len(kept)] == kept
    state = only(redis)
    assert (state.id, state.is_cancelled, state.done, state.failed, state.cancelled) == (batch, False, COUNT - 1, 0, 0)
    assert (state.running, state.queued) == (1, 0)
    assert state.completion_tokens <= 2 * 3
    elsewhere = shell("collect", batch, "-o", "other.jsonl")
    assert "were collected" in elsewhere.stderr
    assert "complete already" in shell(*command).stderr


def test_killed_at_any_moment_it_goes_on(
    shell: Shell, command: list[str], model: str, redis: redis_py.Redis, redis_server: RedisServer
) -> None:
    shell.environment["REDIS_URL"] = redis_server.url
    shell("submit", "in.jsonl", "--pair", model)
    JobQueue(redis, "dead", model, lease=600).claim(1)
    for said in ("loading", "is ready"):
        process = shell.start(*command)
        assert process.stderr
        while said not in process.stderr.readline():
            assert process.poll() is None
        process.kill()
        process.communicate()
    done = shell(*command)
    assert done.returncode == 0, done.stderr
    assert has_all(shell)
    assert (only(redis).is_cancelled, only(redis).queued) == (False, 0)


def test_a_batch_does_not_wait_for_lines_that_only_out_has(
    shell: Shell, command: list[str], model: str, redis: redis_py.Redis, redis_server: RedisServer
) -> None:
    shell.environment["REDIS_URL"] = redis_server.url
    batch = shell("submit", "in.jsonl", "--pair", model).stdout.strip()
    redis.hset(f"draftmill:batch:{batch}", "total", COUNT + 5)  # as if the submission had been cut
    assert shell(*command).returncode == 0
    assert (only(redis).complete, only(redis).total, only(redis).collected is not None) == (True, COUNT, True)


def test_lines_that_were_cancelled_run_again_once_the_batch_is_forgotten(
    shell: Shell, command: list[str], model: str, redis: redis_py.Redis, redis_server: RedisServer
) -> None:
    shell.environment["REDIS_URL"] = redis_server.url
    (shell.folder / "out.jsonl").unlink()
    batch = shell("submit", "in.jsonl", "--pair", model).stdout.strip()
    shell("cancel", batch)
    assert shell("collect", batch, "-o", "out.jsonl").returncode == 4
    errors = shell.lines("out.jsonl.errors.jsonl")
    assert len(errors) == COUNT
    for _ in range(2):
        refused = shell(*command)
        assert refused.returncode == 2
        assert re.fullmatch(f"Error: {batch} was cancelled; .* `draftmill forget {batch}` .*\n", refused.stderr)
    assert shell.lines("out.jsonl.errors.jsonl") == errors
    shell("forget", batch)
    done = shell(*command)
    assert done.returncode == 0, done.stderr
    assert has_all(shell)
    assert not (shell.folder / "out.jsonl.errors.jsonl").exists()
