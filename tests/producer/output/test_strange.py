"""Lines in OUT and its error file that the batch does not have, or has once."""

from __future__ import annotations

from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftmill.producer.input.dataset import BadLine, Dataset, key_of
from draftmill.producer.input.lines import Defaults
from draftmill.producer.output.output import Output, errors_of
from draftmill.producer.queue.errors import UserError
from tests.producer.conftest import Shell
from tests.producer.output.test_output import FORMATS, done, failed, rows

KEYS = [key_of(f"r-{n}") for n in range(4)]


def written(path: Path, *strange: int) -> None:
    """A complete OUT of two results and a failure, and others of those numbers."""
    with Output(path, "b") as output:
        for result in (done(0, "two\nlines"), done(1), *map(done, strange), failed(2)):
            output.write(result)
        output.finish()


@pytest.mark.parametrize("format", FORMATS)
def test_a_result_that_is_not_of_the_input_is_named(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"out.{format}"
    written(path, 7)
    before = path.read_bytes()
    with pytest.raises(UserError) as told:
        Output(path, "b", keys=KEYS)
    line = 5 if format == "csv" else 3  # behind a header, and one of two lines
    assert told.value.message == (
        f"{str(path)!r} line {line}: custom_id 'r-7' is not of this INPUT; mend it, or start over with --force"
    )
    assert path.read_bytes() == before
    with Output(path, "b") as output:  # who does not know INPUT cannot tell
        assert output.done == 3
    with Output(path, "b", force=True, keys=KEYS) as output:
        assert output.ended == 0


def test_a_failure_that_is_not_of_the_input_is_named(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    written(path)
    with Output(path, "b", keys=KEYS) as output:
        assert output.ended == 3
        output.write(failed(9))
    with pytest.raises(UserError, match=r"out\.jsonl\.errors\.jsonl' line 2: custom_id 'r-9' is not of this INPUT"):
        Output(path, "b", keys=KEYS)


@pytest.mark.parametrize("format", FORMATS)
def test_a_result_that_stands_twice_is_named(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"out.{format}"
    written(path)
    if format == "parquet":
        table = pq.read_table(path)
        pq.write_table(pa.concat_tables([table, table.slice(1)]), path)
    else:
        path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1])
    line = 5 if format == "csv" else 3
    with pytest.raises(UserError, match=rf"' line {line}: custom_id 'r-1' stands in an earlier line as well; mend it"):
        Output(path, "b")


def test_bad_lines_are_those_of_the_input(tmp_path: Path) -> None:
    """As after a bad line was taken out of INPUT, which makes no other work of the rest."""
    path = tmp_path / "out.jsonl"
    with Output(path, "b") as output:
        output.write_all_bad([BadLine(3, "x"), BadLine(5, "y")])
        output.write(failed(0))
    with Output(path, "b") as output:
        output.write_all_bad([BadLine(4, "y"), BadLine(5, "y")])
        assert output.bad == 2
    found = [orjson.loads(line)["id"] for line in errors_of(path).read_bytes().splitlines() if b"line-" in line]
    assert sorted(found) == ["line-4", "line-5"]
    with Output(path, "b") as output:
        assert (output.failed, output.errors.bad_ids) == (1, {"line-4", "line-5"})


def test_a_survey_knows_the_ids_of_all_that_can_run(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "r-0", "prompt": "a"}\nnot json\n{"id": "r-1", "prompt": "b"}\n')
    survey = Dataset(str(source), "pair", Defaults()).survey()
    assert list(survey.keys) == KEYS[:2]
    assert survey.keys.itemsize == 8


def test_run_names_what_is_not_of_its_input(shell: Shell) -> None:
    """Before it starts anything; a foreign line never stands for one that is missing."""
    shell.write("in.jsonl", '{"id": "r-0", "prompt": "a"}\n{"id": "r-1", "prompt": "b"}\n')
    command = ["run", "in.jsonl", "-o", "out.jsonl", "--pair", "p"]
    content = Dataset(str(shell.folder / "in.jsonl"), "p", Defaults()).survey().content
    with Output(shell.folder / "out.jsonl", content) as output:
        output.write(done(0))
        output.write(done(7))
    before = rows(shell.folder / "out.jsonl")
    refused = shell(*command)
    assert refused.returncode == 2
    assert refused.stderr == (
        "Error: 'out.jsonl' line 2: custom_id 'r-7' is not of this INPUT; mend it, or start over with --force\n"
    )
    assert rows(shell.folder / "out.jsonl") == before
    shell.write("out.jsonl", shell.lines("out.jsonl")[0] + b"\n" + done(1).line + b"\n")
    assert "is complete already" in shell(*command).stderr
