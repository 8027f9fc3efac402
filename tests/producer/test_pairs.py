"""One file for two pairs through the real command line and two workers, one of which is killed: one OUT, in order."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import click.testing
import orjson
import pytest
import redis as redis_py
from click.testing import CliRunner

from draftmill.producer import Client
from draftmill.producer.cli.main import main
from draftmill.producer.client.shares import Share, shares
from draftmill.producer.queue import batches
from tests.producer.conftest import ROOT, Shell
from tests.redis_server import RedisServer
from tests.worker.run_worker import PAIR, Settings

COUNT = 120
OTHER = "/models/other"

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(redis_server: RedisServer, shell: Shell) -> Iterator[Start]:
    """Starts a worker of a pair, with an engine of set speed and a short lease."""
    shell.environment["REDIS_URL"] = redis_server.url
    redis_server.connect().flushall()
    with ExitStack() as stack:

        def start(pair: str, round_seconds: float = 0.01) -> subprocess.Popen[bytes]:
            spool = str(shell.folder / "spool")
            settings = Settings(redis_server.url, spool, 4, round_seconds, lease=3, pair=pair)
            process = subprocess.Popen(settings.command(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            return process

        yield start


def call(*arguments: str, url: str) -> click.testing.Result:
    """The command line, without the cost of a process."""
    return CliRunner().invoke(main, arguments, env={"REDIS_URL": url, "HF_HUB_OFFLINE": "1"})


def pair_of(n: int) -> str:
    return OTHER if n % 3 == 0 else PAIR


@pytest.fixture
def mixed(shell: Shell) -> str:
    """Lines of both pairs, some of which name none, and some a model that is no pair."""
    names: list[str | None] = [None, PAIR, "gpt-4o-mini"]
    lines = [
        {
            "id": f"r-{n}",
            "prompt": f"say {n}",
            "max_tokens": 6,
            "model": OTHER if pair_of(n) == OTHER else names[n // 3 % 3],
        }
        for n in range(COUNT)
    ]
    return str(shell.folder / shell.write("mixed.jsonl", b"\n".join(map(orjson.dumps, lines))))


def test_lines_go_to_their_pairs_and_come_back_in_order(
    shell: Shell, start: Start, mixed: str, redis: redis_py.Redis, redis_server: RedisServer
) -> None:
    ours, theirs = start(PAIR), start(OTHER, round_seconds=0.2)
    command = ("submit", mixed, "--pair", PAIR, "--models", OTHER)
    submitted = call(*command, url=redis_server.url)
    assert submitted.exit_code == 0, submitted.stderr
    assert "no live worker" not in submitted.stderr
    batch = submitted.stdout.strip()

    def left() -> list[Share]:
        """What is queued and runs of each pair; of the slow one something has ended."""
        state = batches.status(redis, batch)
        assert state
        assert not state.complete
        return shares(redis, state)

    while left()[0].queued > COUNT // 3 - 10:
        time.sleep(0.02)
    theirs.kill()
    while left()[0].running or left()[1] != Share(PAIR, 0, 0):  # its leases run out, the other worker puts lines back
        time.sleep(0.05)
    waiting = left()[0].queued
    assert 0 < waiting < COUNT // 3
    state = orjson.loads(call("status", batch, "--json", url=redis_server.url).stdout)
    assert state["pairs"] == [OTHER, PAIR]
    assert state["by_pair"][0] == {"pair": OTHER, "queued": waiting, "running": 0}
    told = call("status", batch, url=redis_server.url).stdout
    assert f"{PAIR}: 0 running, 0 queued, 1 live worker\n" in told
    assert f"{waiting} queued, no live worker; start one with: draftmill worker --pair {OTHER}\n" in told
    assert orjson.loads(call(*command, "--json", url=redis_server.url).stdout)["new"] == 0
    following = shell.start("collect", batch, "-o", "out.jsonl", "--follow", "--sorted")
    assert following.stderr
    while f"no worker of {OTHER}" not in following.stderr.readline():
        assert following.poll() is None
    start(OTHER)
    _, said = following.communicate(timeout=60)
    assert following.returncode == 0, said
    results = [orjson.loads(line) for line in shell.lines("out.jsonl")]
    assert [line["custom_id"] for line in results] == [f"r-{n}" for n in range(COUNT)]
    assert [line["response"]["body"]["model"] for line in results] == [pair_of(n) for n in range(COUNT)]
    assert ours.poll() is None
    assert call("forget", batch, url=redis_server.url).stdout == f"Forgot {batch}\n"


def test_what_is_not_routed_is_told(redis_server: RedisServer, start: Start, mixed: str) -> None:
    start(OTHER)
    told = call("submit", mixed, "--pair", PAIR, url=redis_server.url).stderr.splitlines()
    assert f'Note: model "{OTHER}" is ignored: the pair is {PAIR} (40 lines)' in told
    assert (
        f"Note: a live worker serves {OTHER}, but lines that name it run on {PAIR}; --models {OTHER} runs them there"
        in told
    )
    assert f"Note: no live worker serves {PAIR}; start one with: draftmill worker --pair {PAIR}" in told


def test_run_refuses_several_pairs_and_dry_runs_show_them(shell: Shell, mixed: str, redis_server: RedisServer) -> None:
    out = str(shell.folder / "out.jsonl")
    refused = call("run", mixed, "-o", out, "--pair", PAIR, "--models", OTHER, url=redis_server.url)
    assert refused.exit_code == 2
    assert f"are for 2 pairs ({OTHER}, {PAIR}), and run starts a worker of one" in refused.stderr.splitlines()[-1]
    assert not (shell.folder / "out.jsonl").exists()
    shown = call("submit", mixed, "--pair", PAIR, "--models", OTHER, "--dry-run", url=redis_server.url).stdout
    assert f"120 requests for {OTHER}, {PAIR}\n" in shown
    assert f"pair     {OTHER}: 40 requests\n" in shown
    assert f"pair     {PAIR}: 80 requests\n" in shown


def test_programs_name_pairs_too(redis_server: RedisServer, start: Start) -> None:
    rows = [{"id": name, "prompt": "say it", "model": name, "max_tokens": 3} for name in ("a", "b", "c")]
    with Client(redis_server.url) as client:
        batch = client.submit(rows, pair=PAIR, models={"a": OTHER, "b": PAIR})
        assert batch.status().pairs == (OTHER, PAIR)
        assert batch.notes == (f'model "c" is ignored: the pair is {PAIR} (1 line)',)
        for pair in (PAIR, OTHER):
            start(pair)
        models = {result.custom_id: orjson.loads(result.raw)["response"]["body"]["model"] for result in batch.results()}
    assert models == {"a": OTHER, "b": PAIR, "c": PAIR}
