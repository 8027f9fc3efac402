"""OUT at a URL, through the command line: whole runs to S3, as moto has it, and to a dataset of a hub; and cuts."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
import redis as redis_py

from tests.producer.cli.test_run import COUNT, prompts
from tests.producer.cli.test_run import model as model  # the fixture
from tests.producer.conftest import Shell
from tests.producer.hub_server import REPO, TOKEN, serving_hub
from tests.producer.s3_server import KEYS, S3, serving_s3
from tests.worker.run_worker import PAIR

LINES = b"".join(b'{"id": "r-%d", "prompt": "say %d", "max_tokens": 2}\n' % (n, n) for n in range(3)) + b"no line\n"
OUT = "s3://data/out.jsonl"


@pytest.fixture
def s3(shell: Shell) -> Iterator[S3]:
    with serving_s3() as s3:
        shell.environment |= s3.environment
        yield s3


@pytest.fixture
def elsewhere(shell: Shell) -> Iterator[Callable[[], None]]:
    """Lets the commands that follow run as on another machine."""
    first = dict(shell.environment)
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as home:

        def move() -> None:
            shell.environment["DRAFTMILL_HOME"] = home

        yield move
        shell("redis", "stop")
    shell.environment = first


def ids(content: bytes) -> list[str]:
    return sorted(orjson.loads(line)["custom_id"] for line in content.splitlines())


def test_killed_while_it_sends_the_same_command_goes_on(shell: Shell, s3: S3, worker: Callable[[], None]) -> None:
    worker()
    batch = shell("submit", shell.write("in.jsonl", LINES), "--pair", PAIR).stdout.strip()
    command = ["collect", batch, "-o", OUT, "--follow", "--json"]
    s3.held = "out.jsonl"
    process = shell.start(*command)
    assert s3.holding.wait(60)
    process.kill()
    process.communicate()
    assert "out.jsonl" not in s3.there()
    s3.held, s3.refused = "-", "out.jsonl"
    refused = shell(*command)
    assert refused.returncode == 2
    message = "Error: cannot write s3://data/out.jsonl: it refuses the credentials; set AWS_ACCESS_KEY_ID and"
    assert refused.stderr.splitlines()[-1].startswith(message)
    assert f"the results stay in '{shell.environment['DRAFTMILL_HOME']}/outputs/" in refused.stderr
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in refused.stderr
    s3.refused = "-"
    last = shell(*command)
    errors = ".draftmill/out.jsonl.errors.jsonl"
    report = orjson.loads(last.stdout)
    assert (report["out"], report["errors"], report["done"]) == (OUT, f"s3://data/{errors}", 3)
    assert ids(s3.read("out.jsonl")) == ["r-0", "r-1", "r-2"]
    assert orjson.loads(s3.read(errors))["error"]["code"] == "invalid_line"


def test_what_came_before_an_error_is_sent(
    shell: Shell, s3: S3, redis: redis_py.Redis, worker: Callable[[], None]
) -> None:
    worker()
    lines = b"".join(b'{"id": "r-%d", "prompt": "say %d", "max_tokens": %d}\n' % (n, n, 10**n) for n in range(5))
    batch = shell("submit", shell.write("in.jsonl", lines), "--pair", PAIR).stdout.strip()
    process = shell.start("collect", batch, "-o", OUT, "--follow")
    wait_for_lines(process.poll, f"{shell.environment['DRAFTMILL_HOME']}/outputs", 1)
    redis.flushall()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert b"r-0" in s3.read("out.jsonl")


def test_an_interrupted_run_goes_on_on_another_machine(
    shell: Shell, s3: S3, model: str, elsewhere: Callable[[], None]
) -> None:
    lines = (shell.folder / prompts(shell)).read_bytes().replace(b'"max_tokens":2000', b'"max_tokens":1000')
    command = ["run", shell.write("in.jsonl", lines), "-o", OUT, "--pair", model]
    process = shell.start(*command)
    outputs = f"{shell.environment['DRAFTMILL_HOME']}/outputs"
    wait_for_lines(process.poll, outputs, COUNT - 1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"interrupted: {COUNT - 1} of {COUNT} results are in {OUT}; go on with: draftmill run" in said
    kept = s3.read("out.jsonl")
    assert kept.count(b"\n") == COUNT - 1
    elsewhere()
    last = shell(*command)
    assert last.returncode == 0, last.stderr
    assert last.stdout.endswith(f"{COUNT} results in {OUT}\n")
    assert s3.read("out.jsonl").startswith(kept)
    assert ids(s3.read("out.jsonl")) == sorted(f"r-{n}" for n in range(COUNT))


def wait_for_lines(poll: Callable[[], object], outputs: str, count: int) -> None:
    """Returns when a command has written so many results on this machine."""
    while sum(path.read_bytes().count(b"\n") for path in Path(outputs).glob("*/results.jsonl")) < count:
        assert poll() is None
        time.sleep(0.02)


def test_results_are_pushed_as_parquet_to_a_dataset_of_the_hub(shell: Shell, worker: Callable[[], None]) -> None:
    url = f"hf://datasets/{REPO}/results.parquet"
    beside = ".draftmill/results.parquet"
    with serving_hub() as hub:
        shell.environment |= hub.environment | {"DRAFTMILL_CACHE": str(shell.folder / "cache")}
        worker()
        batch = shell("submit", shell.write("in.jsonl", LINES), "--pair", PAIR).stdout.strip()
        command = ["collect", batch, "--follow", "--sorted", "-o"]
        shell.environment["HF_TOKEN"] = "hf_wrong"
        refused = shell(*command, url)
        assert (refused.returncode, hub.commits) == (2, [])
        assert refused.stderr.endswith(f"cannot write {url}: it refuses the credentials; set HF_TOKEN\n")
        shell.environment["HF_TOKEN"] = TOKEN
        missing = shell(*command, "hf://datasets/ann/nothing/results.parquet")
        assert "nothing/results.parquet: there is no such dataset; create it first, or set HF_TOKEN" in missing.stderr
        done = shell(*command, url)
        assert done.returncode == 4, done.stderr
        assert done.stdout == f"3 results in {url}, 0 failed and 1 bad line in {url[:-15]}{beside}.errors.jsonl\n"
        assert TOKEN not in done.stderr + refused.stderr
        table = pq.read_table(BytesIO(hub.files["results.parquet"]))
        assert table["custom_id"].to_pylist() == ["r-0", "r-1", "r-2"]
        claim, last = hub.commits  # all that is new comes at once
        assert claim == ([f"{beside}.draftmill.json"], [])
        assert set(last[0]) == {f"{beside}.draftmill.json", f"{beside}.errors.jsonl", "results.parquet"}
        asked = shell("submit", url, "--template", "Again: {{ text }}", "--pair", PAIR, "--dry-run")
        assert asked.returncode == 0, asked.stderr
        assert "3 requests for set-speed" in asked.stdout
