"""OUT in each of its formats: cuts, repetitions and retries leave each line once, and no other file is touched."""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftmill.producer.input.dataset import BadLine
from draftmill.producer.input.notes import of_answers
from draftmill.producer.output.output import Output, errors_of
from draftmill.producer.queue.batches import Result
from draftmill.producer.queue.errors import UserError
from tests.producer.conftest import Shell

FORMATS = ("jsonl", "csv", "parquet")


def done(n: int, text: str = "yes", custom_id: str | None = None, keep: dict[str, Any] | None = None) -> Result:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": n, "tokens_per_round": 2.5}}
    line: dict[str, Any] = {"custom_id": custom_id or f"r-{n}", "response": {"body": body}, "error": None}
    return Result(f"{n + 1}-0", orjson.dumps(line | ({"keep": keep} if keep else {})), n)


def failed(n: int) -> Result:
    return Result(f"{n + 1}-0", orjson.dumps({"custom_id": f"r-{n}", "error": {"code": "x", "message": "y"}}), n)


def rows(path: Path) -> list[dict[str, Any]]:
    """The content of a complete OUT, by the columns of a table."""
    match path.suffix:
        case ".csv":
            limit = csv.field_size_limit(2**31 - 1)
            with path.open(encoding="utf-8", newline="") as file:
                found = list(csv.DictReader(file))
            csv.field_size_limit(limit)
            return found
        case ".parquet":
            return pq.read_table(BytesIO(path.read_bytes())).to_pylist()
        case _:
            lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
            texts = [line["response"]["body"]["choices"][0]["message"]["content"] for line in lines]
            return [{"custom_id": line["custom_id"], "text": text} for line, text in zip(lines, texts, strict=True)]


def write(path: Path, results: Sequence[Result]) -> None:
    with Output(path, "b") as output:
        for result in results:
            output.write(result)
        output.finish()


def stray(folder: Path) -> set[str]:
    """Files beside OUT that a complete OUT does not need."""
    outs = [f"out.{format}" for format in FORMATS]
    return {path.name for path in folder.iterdir()} - {*outs, *(f"{out}.errors.jsonl" for out in outs)}


@pytest.mark.parametrize("format", FORMATS)
@given(
    fails=st.lists(st.booleans(), min_size=1, max_size=30),
    cuts=st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 200), st.integers(0, 60), st.integers(0, 30)), max_size=6
    ),
)
@settings(max_examples=20, deadline=None)
def test_what_an_interruption_tore_is_cut_away(
    tmp_path_factory: pytest.TempPathFactory, format: str, fails: list[bool], cuts: list[tuple[int, int, int, int]]
) -> None:
    """Files lose any number of bytes at their ends, as in a power cut; what was not acknowledged comes again."""
    path = tmp_path_factory.mktemp("out") / f"out.{format}"
    results = [failed(n) if fail else done(n, 'a\n"b",c') for n, fail in enumerate(fails)]
    growing = path.with_name("out.parquet.partial.jsonl") if format == "parquet" else path
    for count, *lost in cuts:
        with Output(path, "b") as output:
            for each in results[:count]:
                output.write(each)
        order = path.with_name(f"{path.name}.draftmill.order")
        for file, bytes in zip((growing, errors_of(path), order), lost, strict=True):
            if file.exists():
                os.truncate(file, max(0, file.stat().st_size - bytes))
    with Output(path, "b") as output:
        for each in results:
            output.write(each)
        output.sort()
        output.finish()
    good = [n for n, fail in enumerate(fails) if not fail]
    assert [row["custom_id"] for row in rows(path)] == [f"r-{n}" for n in good]
    assert failures(path) == [r.line for r, fail in zip(results, fails, strict=True) if fail]
    assert stray(path.parent) == {f"{path.name}.draftmill.json"}


def failures(out: Path) -> list[bytes]:
    errors = errors_of(out)
    return errors.read_bytes().splitlines() if errors.exists() else []


@pytest.mark.parametrize("format", FORMATS)
def test_a_line_is_written_once_however_often_it_comes(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"out.{format}"
    for _ in range(2):
        with Output(path, "b") as output:
            output.write_bad(BadLine(9, "no prompt"))
            for n in (0, 1, 0):
                output.write(done(n))
            output.write(failed(1))  # from another Redis: OUT has its result
            for _ in range(2):
                output.write(failed(2))
            assert (output.done, output.failed, output.bad) == (2, 1, 1)
            assert [output.has(f"r-{n}") for n in range(4)] == [True, True, True, False]
            output.finish()
    assert [row["custom_id"] for row in rows(path)] == ["r-0", "r-1"]
    assert [orjson.loads(line)["custom_id"] for line in failures(path)] == [None, "r-2"]


@pytest.mark.parametrize("format", FORMATS)
def test_only_what_stands_in_a_file_of_ours_goes_on(tmp_path: Path, format: str) -> None:
    """Records that somebody took out come again; a record that is none is told, and nothing is lost to it."""
    path = tmp_path / f"out.{format}"
    growing = path.with_name("out.parquet.partial.jsonl") if format == "parquet" else path
    with Output(path, "b") as output:
        for n in range(3):
            output.write(done(n))
    lines = growing.read_bytes().splitlines(keepends=True)
    growing.write_bytes(b"".join(lines[:-2] + lines[-1:]))
    with Output(path, "b") as output:
        assert [output.has(f"r-{n}") for n in range(3)] == [True, False, True]
    if format != "csv":  # of which anything is a record
        with growing.open("ab") as file:
            file.write(b"not ours\n" + lines[0])
        before = growing.read_bytes()
        with pytest.raises(UserError, match=r"was changed since it was written: record 3 is no result"):
            Output(path, "b")
        assert growing.read_bytes() == before


@pytest.mark.parametrize("format", FORMATS)
def test_results_can_be_read_while_they_come(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"out.{format}"
    with Output(path, "b") as output:
        for n in range(3):
            output.write(done(n))
            output.flush()
            assert len(output.holder.read_bytes().splitlines()) == n + 1 + (format == "csv")
        assert (output.holder == path) == (format != "parquet")


@pytest.mark.parametrize("format", FORMATS)
def test_a_failure_that_ran_again_has_its_new_result(tmp_path: Path, format: str) -> None:
    """After `submit --retry-failed`: old failures stand until the new results come."""
    path = tmp_path / f"out.{format}"
    again = Result("9-0", orjson.dumps({"custom_id": "r-2", "error": {"code": "z", "message": "again"}}), 2)
    with Output(path, "b") as output:
        output.write_bad(BadLine(9, "no prompt"))
        for result in (failed(0), done(1), failed(2)):
            output.write(result)
        output.finish()
    with Output(path, "b") as output:
        assert (output.done, output.failed, output.bad) == (1, 2, 1)
        output.write(done(0))
        output.write(again)
        output.save()  # and a cut: the old failures still stand there
        with Output(copied(path, tmp_path / "copy"), "b") as cut:
            assert (cut.done, cut.failed, cut.bad) == (2, 1, 1)
            cut.finish()
        output.finish()
    for folder in (tmp_path, tmp_path / "copy"):
        assert sorted(row["custom_id"] for row in rows(folder / path.name)) == ["r-0", "r-1"]
        lines = [orjson.loads(line) for line in failures(folder / path.name)]
        assert [line["error"]["code"] for line in lines] == ["invalid_line", "z"]
    assert stray(tmp_path) == {f"{path.name}.draftmill.json", "copy"}


def copied(out: Path, folder: Path) -> Path:
    """OUT and what lies beside it, in another folder."""
    folder.mkdir()
    for path in out.parent.glob(f"{out.name}*"):
        shutil.copy(path, folder)
    return folder / out.name


def test_failures_are_dropped_to_run_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Output(path, "b") as output:
        output.write_bad(BadLine(9, "no prompt"))
        output.write(failed(0))
        output.errors.drop_failures()
        assert not output.has("r-0")
    assert [orjson.loads(line)["id"] for line in failures(path)] == ["line-9"]
    with Output(path, "b") as output:
        output.write(failed(0))
        output.finish()
    assert [orjson.loads(line)["custom_id"] for line in failures(path)] == [None, "r-0"]


def test_failures_for_a_reason_are_dropped_to_run_again(tmp_path: Path) -> None:
    with Output(tmp_path / "out.jsonl", "b") as output:
        for n, message in enumerate(["out of memory", "no such file", f"{'x' * 200} memory"]):
            error = {"code": "engine_failed", "message": message}
            output.write(Result(f"{n}-0", orjson.dumps({"custom_id": f"r-{n}", "response": None, "error": error}), n))
        assert len(output.errors.failed_for("Engine_Failed")) == len(output.errors.failed_for("")) == 3
        output.errors.drop_failures("MEMORY")
        assert [output.has(f"r-{n}") for n in range(3)] == [False, True, True]
    assert [orjson.loads(line)["custom_id"] for line in failures(tmp_path / "out.jsonl")] == ["r-1", "r-2"]


def test_an_interruption_in_the_middle_of_a_result_does_not_write_it_twice(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    expected = pytest.raises(UserError, match="keeps other columns")
    with expected, Output(path, "b") as output:
        output.write(done(0))
        output.write(done(1, keep={"stars": 1}))
    with Output(path, "b") as output:
        assert output.done == 1
        output.write(done(0))
        output.finish()
    assert [row["custom_id"] for row in rows(path)] == ["r-0"]


def test_another_batch_s_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Output(path, "b", source="in.jsonl", parameters={"pair": "p", "max_tokens": 64}) as output:
        output.write(done(0))
        output.write_bad(BadLine(3, "no prompt"))
    nameless = tmp_path / "nameless.jsonl"
    with Output(nameless, "b", parameters={"pair": "p"}) as output:
        output.write(done(0))
    with pytest.raises(UserError, match=r"holds b, not c \(other lines or other parameters\); "):
        Output(nameless, "c", source="in.jsonl", parameters={"pair": "p"})
    before = path.read_bytes()
    for source, parameters, why in (
        ("in.jsonl", {"pair": "p", "max_tokens": 128}, "--max-tokens was 64, is 128"),
        ("in.jsonl", {"pair": "p", "max_tokens": 64, "template": "sha256:1"}, "--template has changed"),
        ("in.jsonl", {"pair": "p", "max_tokens": 64}, "the lines of in.jsonl have changed"),
        ("two.jsonl", {"pair": "p", "max_tokens": 64}, "the lines of in.jsonl"),
        ("", {}, "other lines or other parameters"),
    ):
        with pytest.raises(UserError) as refused:
            Output(path, "c", source=source, parameters=parameters)
        assert refused.value.message == (
            f"{str(path)!r} holds b, not c ({why}); choose another file or overwrite it with --force"
        )
    assert path.read_bytes() == before
    with Output(path, "c", force=True) as output:
        output.write(done(1))
    assert b"r-1" in path.read_bytes()
    assert not errors_of(path).exists()
    with Output(path, "c", force=True) as output:  # which says that something else may be overwritten
        assert output.done == 1


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_of_somebody_else_is_not_touched(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"out.{format}"
    path.write_text("precious")
    with pytest.raises(UserError, match=r"' exists; choose another file or overwrite it with --force"):
        Output(path, "b")
    assert path.read_text() == "precious"
    assert stray(tmp_path) == set()


def test_without_pyarrow_parquet_is_one_line(shell: Shell) -> None:
    """A package of that name that is not there, as Python says it."""
    packages = shell.folder / "packages"
    packages.mkdir()
    shell.write("packages/pyarrow.py", 'raise ModuleNotFoundError("No module named \'pyarrow\'", name="pyarrow")')
    shell.environment["PYTHONPATH"] = str(packages)
    shell.write("in.jsonl", '{"prompt": "a"}')
    done = shell("run", "in.jsonl", "-o", "out.parquet")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'draftmill[data]'" in done.stderr
    assert stray(shell.folder) == {"in.jsonl", "packages"}


def test_a_file_is_written_by_one_process(tmp_path: Path) -> None:
    for format in FORMATS:
        path = tmp_path / f"out.{format}"
        with Output(path, "b"), pytest.raises(UserError, match="another draftmill is writing"):
            Output(path, "b")


def test_notes_are_counted_by_the_results_that_were_added(tmp_path: Path) -> None:
    def noted(n: int, *notes: str) -> Result:
        line = orjson.loads(done(n).line)
        line["response"]["body"]["draftmill"] = {"notes": notes}
        return Result(f"{n + 1}-0", orjson.dumps(line), n)

    for format in FORMATS:
        with Output(tmp_path / f"out.{format}", "b") as output:
            for result in (noted(0, "a", "b"), noted(1, "b"), noted(1, "b"), done(2), failed(3)):
                output.write(result)
            assert output.notes == {"a": 1, "b": 2}
    kinds = Counter({"a": 3, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1})
    shown = ["a (3 lines)", "b (1 line)", "c (1 line)", "d (1 line)", "e (1 line)"]
    assert list(of_answers(kinds)) == [*shown, "1 more note stands in the results"]
