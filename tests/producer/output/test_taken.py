"""OUT under the hands of others: what is no longer where it belongs never counts as kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
import redis as redis_py

from draftmill.producer.output.output import Output, errors_of
from draftmill.producer.queue import batches
from draftmill.producer.queue.errors import UserError
from tests.producer.conftest import Shell
from tests.producer.output.test_output import FORMATS, done, failed, rows
from tests.redis_server import RedisServer
from tests.worker.run_worker import PAIR


def grows(out: Path) -> Path:
    """The file that grows while results come."""
    return out.with_name(f"{out.name}.partial.jsonl") if out.suffix == ".parquet" else out


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("of_errors", [False, True])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_file_that_was_taken_away_is_told(tmp_path: Path, format: str, of_errors: bool, is_replaced: bool) -> None:
    path = tmp_path / f"out.{format}"
    taken = errors_of(path) if of_errors else grows(path)
    expected = pytest.raises(UserError)
    with expected as told, Output(path, "b") as output:
        output.write(done(0))
        output.write(failed(1))
        output.save()
        taken.rename(tmp_path / "elsewhere")
        if is_replaced:
            taken.write_bytes(b"of somebody else")
        output.write(done(2))
        output.save()
    assert told.value.message == (
        f"{str(taken)!r} was removed or replaced while it was written; the same command writes it anew"
    )
    assert taken.exists() == is_replaced


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("of_errors", [False, True])
def test_a_file_that_was_cut_is_told_before_more_is_written(tmp_path: Path, format: str, of_errors: bool) -> None:
    path = tmp_path / f"out.{format}"
    short = errors_of(path) if of_errors else grows(path)
    expected = pytest.raises(UserError)
    with expected as told, Output(path, "b") as output:
        for result in (done(0), failed(1)):
            output.write(result)
        output.save()
        os.truncate(short, 0)
        for result in (done(2), failed(3)):
            output.write(result)
        output.flush()
    assert told.value.message == (
        f"{str(short)!r} was cut short while it was written; the same command writes what it lacks"
    )
    results = [done(0), failed(1), done(2), failed(3)]
    with Output(path, "b") as output:
        for result in results:
            output.write(result)
        output.finish()
    assert {row["custom_id"] for row in rows(path)} == {"r-0", "r-2"}
    assert sorted(errors_of(path).read_bytes().splitlines()) == [failed(n).line for n in (1, 3)]


def test_a_parquet_file_that_was_removed_while_rows_were_added_is_told(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    with Output(path, "b") as output:
        output.write(done(0))
        output.finish()
    expected = pytest.raises(UserError, match=r"out\.parquet' was removed or replaced while it was written")
    with expected, Output(path, "b") as output:
        output.write(done(1))
        path.unlink()
        output.finish()
    with Output(path, "b") as output:  # what came since is still there
        assert [output.has(f"r-{n}") for n in range(2)] == [False, True]


def test_a_table_without_its_header_is_told(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with Output(path, "b") as output:
        output.write(done(0))
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[1])
    with pytest.raises(UserError, match="was changed since it was written: record 1 is no result"):
        Output(path, "b")


@pytest.mark.parametrize("where", ["column", "another column", "footer", "end"])
def test_a_damaged_parquet_file_is_named_with_what_to_do(tmp_path: Path, where: str) -> None:
    path = tmp_path / "out.parquet"
    with Output(path, "b") as output:
        for n in range(20):
            output.write(done(n))
        output.finish()
    content = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path).row_group(0)
    damaged = {
        "column": metadata.column(0).data_page_offset,
        "another column": metadata.column(1).data_page_offset,
        "footer": len(content) - 8 - int.from_bytes(content[-8:-4], "little"),
        "end": len(content) - 4,
    }[where]
    content[damaged : damaged + 40] = bytes(byte ^ 0xFF for byte in content[damaged : damaged + 40])
    path.write_bytes(content)
    expected = pytest.raises(UserError)
    with expected as told, Output(path, "b") as output:
        output.write(done(20))
        output.finish()
    assert told.value.message == (
        f"{str(path)!r} was changed since it was written: it is no Parquet file of results; "
        "mend it, or start over with --force"
    )
    assert path.read_bytes() == content


def test_a_file_that_took_the_place_of_an_empty_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    expected = pytest.raises(UserError, match="removed or replaced")
    with expected, Output(path, "b") as output:
        path.unlink()
        path.write_bytes(b"of somebody else")
        output.save()
    assert path.read_bytes() == b"of somebody else"


@pytest.fixture
def batch(shell: Shell, redis: redis_py.Redis, redis_server: RedisServer) -> str:
    """Forty lines, submitted."""
    shell.environment["REDIS_URL"] = redis_server.url
    lines = [{"id": f"r-{n}", "prompt": "say it", "max_tokens": 3} for n in range(40)]
    shell.write("in.jsonl", b"\n".join(orjson.dumps(line) for line in lines))
    return shell("submit", "in.jsonl", "--pair", PAIR).stdout.strip()


def test_nothing_of_a_removed_file_is_acknowledged(
    shell: Shell, redis: redis_py.Redis, worker: Callable[[], None], batch: str
) -> None:
    collecting = shell.start("collect", batch, "-o", "out.jsonl", "--follow")
    while not (shell.folder / "out.jsonl").exists():
        assert collecting.poll() is None
        time.sleep(0.02)
    (shell.folder / "out.jsonl").unlink()
    worker()
    said = collecting.communicate(timeout=60)[1].splitlines()[-1]
    assert said == ("Error: 'out.jsonl' was removed or replaced while it was written; the same command writes it anew")
    assert collecting.returncode == 2
    assert batches.handed(redis, batch) == 0
    assert shell("collect", batch, "-o", "out.jsonl", "--follow").returncode == 0
    assert len(shell.lines("out.jsonl")) == 40
