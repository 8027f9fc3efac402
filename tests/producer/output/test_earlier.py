"""Error files: one for each OUT, and those that earlier versions named by the stem alone."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from draftmill.producer.input.dataset import BadLine
from draftmill.producer.output.output import Output, errors_of
from draftmill.producer.queue.batches import Result
from draftmill.producer.queue.errors import UserError
from draftmill.producer.queue.wire import job_id
from tests.producer.output.test_output import FORMATS, done, rows


def failed(batch: str, n: int) -> Result:
    error = {"code": "x", "message": "y"}
    line = {"id": f"batch_req_{job_id(batch, f'r-{n}')}", "custom_id": f"r-{n}", "response": None, "error": error}
    return Result(f"{n + 1}-0", orjson.dumps(line), n)


def unfinished_by_an_earlier_version(out: Path, batch: str) -> bytes:
    """One result, a bad line and a failure, the latter two in a file that is named by the stem; returns its content."""
    with Output(out, batch) as output:
        output.write_bad(BadLine(9, "no prompt"))
        output.write(done(0))
        output.write(failed(batch, 1))
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
        output.write(failed("b", 2))
        output.complete()
    assert errors_of(out).read_bytes() == before + failed("b", 2).line + b"\n"
    assert [row["custom_id"] for row in rows(out)] == ["r-0"]
    assert not earlier.exists()


def test_a_cut_while_an_earlier_version_swapped_its_error_file_is_made_good(tmp_path: Path) -> None:
    out, earlier = tmp_path / "a.jsonl", tmp_path / "a.errors.jsonl"
    after = unfinished_by_an_earlier_version(out, "b")
    with Output(out, "b") as output:
        manifest = output.manifest
    errors_of(out).rename(tmp_path / "a.errors.jsonl.tmp")
    earlier.write_bytes(after + failed("b", 2).line + b"\n")
    manifest.swapping = True
    (tmp_path / "a.jsonl.draftmill.json").write_bytes(manifest.content)
    with Output(out, "b") as output:
        assert not output.manifest.swapping
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "a.jsonl.draftmill.json", "a.jsonl.errors.jsonl"}
    assert errors_of(out).read_bytes() == after


def test_failures_that_another_output_wrote_over_are_told(tmp_path: Path) -> None:
    for format in ("jsonl", "csv"):
        unfinished_by_an_earlier_version(tmp_path / f"a.{format}", f"b-{format}")
    with pytest.raises(UserError, match=r"a\.errors\.jsonl' does not hold the failures of '.*a\.jsonl'"):
        Output(tmp_path / "a.jsonl", "b-jsonl")
    with Output(tmp_path / "a.csv", "b-csv") as output:
        assert (output.manifest.failed, output.manifest.bad) == (1, 1)
    assert len((tmp_path / "a.csv.errors.jsonl").read_bytes().splitlines()) == 2
