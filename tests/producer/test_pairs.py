"""One file for two pairs through the real command line and two workers, one of which is killed: one OUT, in order."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import orjson
import pytest

from draftmill.producer import Client
from tests.producer.conftest import ROOT, Shell
from tests.redis_server import RedisServer
from tests.worker.run_worker import PAIR, Settings

COUNT = 120
OTHER = "/models/other"

Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def start(redis_server: RedisServer, shell: Shell) -> Iterator[Start]:
    """Starts a worker of a pair, with an engine of set speed and a short lease."""
    shell.environment["REDIS_URL"] = redis_server.url
    redis_server.connect().flushall()
    with ExitStack() as stack:

        def start(pair: str) -> subprocess.Popen[bytes]:
            spool = str(shell.folder / "spool")
            settings = Settings(redis_server.url, spool, rows=4, round_seconds=0.01, lease=1, pair=pair)
            process = subprocess.Popen(settings.command(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            return process

        yield start


def pair_of(n: int) -> str:
    return OTHER if n % 3 == 0 else PAIR


@pytest.fixture
def mixed(shell: Shell) -> str:
    """Lines of both pairs, some of which name none, and some a model that is no pair."""
    names: list[str | None] = [None, PAIR, "gpt-4o-mini"]
    lines = [
        {"id": f"r-{n}", "prompt": f"say {n}", "max_tokens": 6, "model": OTHER if pair_of(n) == OTHER else names[n % 2]}
        for n in range(COUNT)
    ]
    return shell.write("mixed.jsonl", b"\n".join(map(orjson.dumps, lines)))


def shown(shell: Shell, batch: str) -> dict[str, int]:
    """How many lines of each pair are queued or run, as `status` says."""
    state = orjson.loads(shell("status", batch, "--json").stdout)
    assert state["pairs"] == [OTHER, PAIR]
    return {share["pair"]: share["queued"] + share["running"] for share in state["by_pair"]}


def test_lines_go_to_their_pairs_and_come_back_in_order(shell: Shell, start: Start, mixed: str) -> None:
    ours, theirs = start(PAIR), start(OTHER)
    command = ("submit", mixed, "--pair", PAIR, "--models", OTHER)
    submitted = shell(*command)
    assert submitted.returncode == 0, submitted.stderr
    assert "no live worker" not in submitted.stderr
    batch = submitted.stdout.strip()
    while shown(shell, batch)[OTHER] > COUNT // 3 - 5:
        time.sleep(0.02)
    theirs.send_signal(signal.SIGKILL)
    theirs.wait()
    while shown(shell, batch)[PAIR]:
        time.sleep(0.05)
    time.sleep(2)  # its leases run out, and the other worker puts its lines back
    told = shell("status", batch).stdout
    assert f"{PAIR}: 0 running, 0 queued, 1 live worker\n" in told
    assert f"queued, no live worker; start one with: draftmill worker --pair {OTHER}\n" in told
    assert orjson.loads(shell(*command, "--json").stdout)["new"] == 0
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
    assert shell("forget", batch).returncode == 0


def test_what_is_not_routed_is_told(shell: Shell, start: Start, mixed: str) -> None:
    start(OTHER)
    told = shell("submit", mixed, "--pair", PAIR).stderr.splitlines()
    assert f'Note: model "{OTHER}" is ignored: the pair is {PAIR} (40 lines)' in told
    assert (
        f"Note: a live worker serves {OTHER}, but lines that name it run on {PAIR}; --models {OTHER} runs them there"
        in told
    )
    assert f"Note: no live worker serves {PAIR}; start one with: draftmill worker --pair {PAIR}" in told


def test_run_refuses_several_pairs_and_dry_runs_show_them(shell: Shell, mixed: str) -> None:
    refused = shell("run", mixed, "-o", "out.jsonl", "--pair", PAIR, "--models", OTHER)
    assert refused.returncode == 2
    assert f"are for 2 pairs ({OTHER}, {PAIR}), and run starts a worker of one" in refused.stderr.splitlines()[-1]
    assert not (shell.folder / "out.jsonl").exists()
    shell.environment["HF_HUB_OFFLINE"] = "1"
    shown = shell("submit", mixed, "--pair", PAIR, "--models", OTHER, "--dry-run").stdout
    assert f"120 requests for {OTHER}, {PAIR}\n" in shown
    assert f"pair     {OTHER}: 40 requests\n" in shown
    assert f"pair     {PAIR}: 80 requests\n" in shown


def test_programs_name_pairs_too(redis_server: RedisServer, start: Start) -> None:
    rows = [{"id": name, "prompt": "say it", "model": name, "max_tokens": 3} for name in ("a", "b", "c")]
    with Client(redis_server.url) as client:
        batch = client.submit(rows, pair=PAIR, models={"a": OTHER, "b": PAIR})
        assert batch.status().pairs == (OTHER, PAIR)
        assert batch.notes == (f'model "c" is ignored: the pair is {PAIR} (1 line)',)
        start(PAIR), start(OTHER)
        models = {result.custom_id: orjson.loads(result.raw)["response"]["body"]["model"] for result in batch.results()}
    assert models == {"a": OTHER, "b": PAIR, "c": PAIR}
