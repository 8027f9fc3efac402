"""The Python interface against a real server and a real worker process with an engine of set speed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import orjson
import pytest
import redis as redis_py

from draftmill.producer import AsyncBatch, AsyncClient, Batch, BatchStatus, Client, Result, Usage, UserError
from tests.farm.zygote import forked_worker
from tests.producer.conftest import ROOT, Shell
from tests.redis_server import RedisServer
from tests.worker.run_worker import PAIR, Settings


@pytest.fixture
def url(redis_server: RedisServer, redis: redis_py.Redis) -> str:
    return redis_server.url


@pytest.fixture
def worker(url: str, tmp_path: Path) -> Iterator[None]:
    """Eight rows, 100 rounds a second."""
    with forked_worker(Settings(url, str(tmp_path / "spool"), rows=8, round_seconds=0.01)):
        yield


def rows(count: int, tokens: int = 5) -> list[dict[str, object]]:
    return [{"id": f"r-{n}", "prompt": f"say {n}", "max_tokens": tokens} for n in range(count)]


def test_results_come_while_the_batch_runs(url: str, worker: object) -> None:
    with Client(url) as client:
        batch = assert_type(client.submit(rows(80), pair=PAIR), Batch)
        found = assert_type(batch.results(), Iterator[Result])
        first = next(found)
        assert not batch.status().complete
        results = [first, *found]
        assert sorted(result.custom_id for result in results) == sorted(f"r-{n}" for n in range(80))
        assert first.text == "word0 word1 word2 word3 word4"
        assert first.finish_reason == "length"
        assert assert_type(first.usage, Usage | None) == Usage(prompt_tokens=2, completion_tokens=5)
        assert first.error is None
        assert first.line == int(first.custom_id[2:]) + 1
        assert orjson.loads(first.raw)["custom_id"] == first.custom_id
        state = assert_type(batch.wait(), BatchStatus)
        assert (state.done, state.failed) == (80, 0)
        assert [result.custom_id for result in client.batch(batch.id).results(results[-3].entry)] == [
            result.custom_id for result in results[-2:]
        ]
        again = client.submit(rows(80), pair=PAIR, keep_results=3600)
        assert again.notes[-1:] == ("the batch is complete already; keep_results changes nothing",)
        batch.forget()
        with pytest.raises(UserError, match="no batch"):
            batch.status()


def test_prompts_parameters_and_failures(url: str, worker: object) -> None:
    with Client(url) as client:
        prompts = ["say it", "word " * 2000, ""]
        batch = client.submit(prompts, pair=PAIR, max_tokens=3, system="Be brief.")
        assert [str(line) for line in batch.bad] == ["line 3: prompt is empty"]
        done, failed = sorted(batch.results(), key=lambda result: result.line)
        assert (done.custom_id, done.text) == ("line-1", "word0 word1 word2")
        assert done.usage
        assert done.usage.prompt_tokens == 4
        assert failed.text is None
        assert failed.error
        assert (failed.error.code, failed.error.message[:19]) == ("invalid_request", "the prompt has 2002")
        again = client.submit(prompts, pair=PAIR, max_tokens=3, system="Be brief.", retry_failed=True)
        assert again.id == batch.id
        assert [result.custom_id for result in again.results(max(done.entry, failed.entry))] == ["line-2"]
        assert len(list(again.results())) == 2


def test_rows_and_templates(url: str, worker: object) -> None:
    articles = [{"id": n, "text": f"article {n}", "stars": n} for n in range(6)]
    with Client(url) as client:
        batch = client.submit(
            articles, pair=PAIR, max_tokens=2, template="Summarise: {{ text }}", where="stars > 2", keep=["stars"]
        )
        assert sorted((result.custom_id, result.keep) for result in batch.results()) == [
            (str(n), {"stars": n}) for n in range(3, 6)
        ]
        assert client.submit(iter(articles), pair=PAIR, template="{{ text }}", limit=2).wait().total == 2


def test_the_command_line_and_python_make_the_same_batch(url: str, shell: Shell) -> None:
    path = shell.folder / "in.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in rows(3)))
    options = ("--pair", PAIR, "--temperature", "0.5", "--slot", "monday", "--redis-url", url)
    by_hand = shell("submit", str(path), *options).stdout.strip()
    with Client(url) as client:
        batch = client.submit(path, pair=PAIR, temperature=0.5, slot="monday")
        assert batch.id == by_hand
        assert client.submit(rows(3), pair=PAIR, temperature=0.5, slot="monday").id == by_hand
        assert client.submit(rows(3), pair=PAIR, temperature=0.5).id != by_hand
    with Client(url) as client:
        assert client.batch(by_hand).status().submitted == 3


def test_cancel(url: str, worker: object) -> None:
    with Client(url) as client:
        batch = client.submit(rows(2000, tokens=50), pair=PAIR)
        results = batch.results()
        first = next(results)
        batch.cancel()
        rest = list(results)
        assert first.error is None
        assert {result.error.code for result in rest if result.error} == {"batch_cancelled"}
        state = batch.status()
        assert state.is_cancelled
        assert state.total == state.ended == 1 + len(rest)
        with pytest.raises(UserError, match="was cancelled"):
            client.submit(rows(2000, tokens=50), pair=PAIR)


def test_waiting_has_an_end(url: str) -> None:
    with Client(url) as client, pytest.raises(TimeoutError, match=r"is not complete after 0\.1 s"):
        client.submit(rows(4), pair=PAIR).wait(timeout=0.1)


def test_two_batches_at_once_in_asyncio(url: str, worker: object) -> None:
    seen: list[str] = []

    async def read(batch: AsyncBatch, name: str) -> int:
        count = 0
        async for result in batch.results():
            assert assert_type(result, Result).error is None
            seen.append(name)
            count += 1
        return count

    async def main() -> None:
        async with AsyncClient(url) as client:
            one = assert_type(await client.submit(rows(40), pair=PAIR), AsyncBatch)
            two = await client.submit(rows(40, tokens=6), pair=PAIR)
            assert await asyncio.gather(read(one, "one"), read(two, "two")) == [40, 40]
            assert (await one.wait()).done == 40
            three = await client.submit(rows(500, tokens=100), pair=PAIR)
            await three.cancel()
            state = await (await client.batch(three.id)).wait()
            assert state.is_cancelled
            await two.forget()

    asyncio.run(main())
    assert "two" in seen[: seen.index("one") + 40]
    assert "one" in seen[seen.index("two") :]


PROGRAM = """
import sys
from draftmill.producer import Client
rows = [{"id": f"r-{n}", "prompt": f"say {n}", "max_tokens": 5} for n in range(300)]
with Client(sys.argv[1]) as client:
    for result in client.submit(rows, pair=sys.argv[2]).results():
        print(result.custom_id, result.entry, flush=True)
"""


def test_a_killed_program_goes_on_where_it_was(url: str, worker: object) -> None:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, url, PAIR], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert program.stdout
    lines = [program.stdout.readline() for _ in range(60)]
    program.send_signal(signal.SIGKILL)
    program.communicate()
    with Client(url) as client:
        batch = client.submit(rows(300), pair=PAIR)
        assert not batch.status().complete
        rest = [result.custom_id for result in batch.results(after=lines[-1].split()[1])]
    assert sorted([line.split()[0] for line in lines] + rest) == sorted(f"r-{n}" for n in range(300))


def test_mistakes(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot reach Redis"):
        Client(f"unix://{tmp_path}/none.sock")
    misspelt: Any = {"max_token": 3}
    with Client(url) as client:
        with pytest.raises(UserError, match=r"cannot read 'none\.jsonl': no such file"):
            client.submit("none.jsonl")
        with pytest.raises(UserError, match="temperature is 3; it must be at most 2"):
            client.submit(["a"], temperature=3)
        with pytest.raises(UserError, match=r"line 2: has no prompt \(nor messages\) \(1 bad in all\)"):
            client.submit([{"prompt": "a"}, {"text": "b"}], strict=True)
        with pytest.raises(UserError, match="results cannot be kept for 5 s; keep_results is 60 s to ten years"):
            client.submit(["a"], keep_results=5)
        with pytest.raises(TypeError, match="no option max_token"):
            client.submit(["a"], **misspelt)
        with pytest.raises(UserError, match="no batch 'batch_x' here"):
            client.batch("batch_x")
    with pytest.raises(ZeroDivisionError):
        fail_while_lines_are_queued(url)


def fail_while_lines_are_queued(url: str) -> None:
    with Client(url) as client:
        client.submit(rows(5000), pair=PAIR)
        raise ZeroDivisionError


def test_importing_costs_nothing_before_it_is_needed() -> None:
    code = """
import sys
import draftmill.producer
heavy = {"redis", "rq", "click", "pydantic", "orjson", "rich", "mlx"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
from draftmill.producer import Client, cli
assert not {"rich", "mlx", "mlx_lm", "transformers", "pyarrow", "croniter"} & sys.modules.keys()
try:
    from draftmill.producer import Nothing
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Nothing" in done.stdout
