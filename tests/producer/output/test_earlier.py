"""Error files: one for each OUT, and those that earlier versions named by the stem alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import orjson
import pytest

from draftmill.producer.input.dataset import BadLine
from draftmill.producer.output.output import Output, errors_of
from draftmill.producer.queue.batches import Result
from draftmill.producer.queue.errors import UserError
from tests.producer.output.test_output import FORMATS, done, rows


def failed(batch: str, n: int) -> Result:
    error = {"code": "x", "message": "y"}
    digest = hashlib.sha256(f"r-{n}".encode()).hexdigest()
    line = {"id": f"batch_req_{batch}-{digest[:20]}", "custom_id": f"r-{n}", "response": None, "error": error}
    return Result(f"{n + 1}-0", orjson.dumps(line), n)


def unfinished_by_an_earlier_version(out: Path, batch: str, **manifest: Any) -> bytes:
    """One result, a bad line and a failure, the latter two in a file that is named by the stem; returns its content."""
    with Output(out, batch) as output:
        output.write_bad(BadLine(9, "no prompt"))
        output.write(done(0))
        output.write(failed(batch, 1))
    growing = out.with_name(f"{out.name}.partial.jsonl") if out.suffix == ".parquet" else out
    content = {
        "batch": batch,
        "source": "in.jsonl",
        "parameters": {},
        "created": 1700000000.5,
        "after": "1-0",
        "out_bytes": growing.stat().st_size,
        "errors_bytes": errors_of(out).stat().st_size,
        "columns": [],
        "done": 1,
        "failed": 1,
        "bad": 1,
        "bad_written": True,
        "in_order": False,
        "complete": False,
        "complete_to": "",
        "retries": 0,
        "swapping": False,
    }
    out.with_name(f"{out.name}.draftmill.json").write_bytes(orjson.dumps(content | manifest))
    out.with_name(f"{out.name}.draftmill.order").unlink()
    return errors_of(out).rename(out.with_name(f"{out.stem}.errors.jsonl")).read_bytes()


def test_two_outputs_never_share_an_error_file(tmp_path: Path) -> None:
    for format in FORMATS:
        with Output(tmp_path / f"a.{format}", f"b-{format}") as output:
            output.write(failed(f"b-{format}", 0))
    for format in FORMATS:  # going on with one leaves the others'
        with Output(tmp_path / f"a.{format}", f"b-{format}") as output:
            output.write(failed(f"b-{format}", 1))
    for format in FORMATS:
        lines = (tmp_path / f"a.{format}.errors.jsonl").read_bytes().splitlines()
        assert lines == [failed(f"b-{format}", n).line for n in range(2)]


@pytest.mark.parametrize("format", FORMATS)
def test_going_on_with_an_earlier_version_s_output_keeps_its_failures(tmp_path: Path, format: str) -> None:
    out, earlier = tmp_path / f"a.{format}", tmp_path / "a.errors.jsonl"
    before = unfinished_by_an_earlier_version(out, "b")
    with earlier.open("ab") as file:
        file.write(b"what an interruption tore")
    with Output(out, "b") as output:
        assert [output.has(f"r-{n}") for n in range(3)] == [True, True, False]
        output.write(failed("b", 2))
        output.finish()
    assert errors_of(out).read_bytes() == before + failed("b", 2).line + b"\n"
    assert [row["custom_id"] for row in rows(out)] == ["r-0"]
    assert not earlier.exists()


def test_a_cut_while_an_earlier_version_swapped_its_error_file_is_made_good(tmp_path: Path) -> None:
    out, earlier = tmp_path / "a.jsonl", tmp_path / "a.errors.jsonl"
    after = unfinished_by_an_earlier_version(out, "b", swapping=True)
    earlier.rename(tmp_path / "a.errors.jsonl.tmp")
    earlier.write_bytes(after + failed("b", 2).line + b"\n")
    with Output(out, "b") as output:
        assert (output.done, output.failed, output.bad) == (1, 1, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "a.jsonl.draftmill.json", "a.jsonl.errors.jsonl"}
    assert errors_of(out).read_bytes() == after


def test_the_id_of_an_earlier_version_s_batch_is_known(tmp_path: Path) -> None:
    """Its ids derived from the lines alone, ours derive from their numbers and the user as well."""
    out = tmp_path / "a.jsonl"
    unfinished_by_an_earlier_version(out, "batch_of_lines")
    with Output(out, "batch_of_ann", content="batch_of_lines") as output:
        assert output.has("r-0")
    with Output(out, "batch_of_bob", content="batch_of_lines") as output:
        assert output.has("r-0")
    with pytest.raises(UserError, match="holds batch_of_bob, not batch_of_lines"):
        Output(out, "batch_of_lines", content="others")


def test_failures_that_another_output_wrote_over_are_told(tmp_path: Path) -> None:
    for format in ("jsonl", "csv"):
        unfinished_by_an_earlier_version(tmp_path / f"a.{format}", f"b-{format}")
    with pytest.raises(UserError, match=r"a\.errors\.jsonl' does not hold the failures of '.*a\.jsonl'"):
        Output(tmp_path / "a.jsonl", "b-jsonl")
    with Output(tmp_path / "a.csv", "b-csv") as output:
        assert (output.failed, output.bad) == (1, 1)
    assert len((tmp_path / "a.csv.errors.jsonl").read_bytes().splitlines()) == 2
