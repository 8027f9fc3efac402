"""What a row of OUT holds: any text and any value that was kept, and the columns that a table has for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftmill.producer.output.formats import names
from draftmill.producer.output.output import Output
from draftmill.producer.queue.batches import Result
from tests.producer.output.test_output import FORMATS, done, failed, rows, stray, write

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
NESTED = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@given(
    columns=st.lists(TEXTS.filter(bool), min_size=1, max_size=3, unique=True),
    texts=st.lists(TEXTS, min_size=1, max_size=5),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_text_and_any_kept_value_comes_back(
    tmp_path_factory: pytest.TempPathFactory, columns: list[str], texts: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("out")
    kept = [{column: data.draw(NESTED) for column in columns} for _ in texts]
    ids = [data.draw(TEXTS.map(lambda text, n=n: f"{n}{text}")) for n in range(len(texts))]
    results = [done(n, text, ids[n], kept[n]) for n, text in enumerate(texts)]
    for format in FORMATS:
        write(folder / f"out.{format}", results)
        found = rows(folder / f"out.{format}")
        assert [(row["custom_id"], row["text"]) for row in found] == list(zip(ids, texts, strict=True))
    lines = [orjson.loads(line) for line in (folder / "out.jsonl").read_bytes().splitlines()]
    assert [line["keep"] for line in lines] == kept
    for name, column in zip(names(columns), columns, strict=True):
        tables = rows(folder / "out.csv"), rows(folder / "out.parquet")
        for keep, from_csv, from_parquet in zip(kept, *tables, strict=True):
            value = keep[column]
            as_text = value if isinstance(value, str) else orjson.dumps(value).decode()
            assert from_csv[name] == ("" if value is None else as_text)
            assert from_parquet[name] in (value, None if value is None else as_text)


def test_a_table_has_plain_columns_with_types(tmp_path: Path) -> None:
    keep = [{"stars": 4, "text": "good", "price": 1}, {"stars": None, "text": "bad", "price": 2.5}]
    for format in ("csv", "parquet"):
        write(tmp_path / f"out.{format}", [done(n, "Yes.\n", keep=keep[n]) for n in range(2)])
    assert (tmp_path / "out.csv").read_text() == (
        "custom_id,text,finish_reason,prompt_tokens,completion_tokens,tokens_per_round,stars,input_text,price\n"
        'r-0,"Yes.\n",stop,7,0,2.5,4,good,1\n'
        'r-1,"Yes.\n",stop,7,1,2.5,,bad,2.5\n'
    )
    table = pq.read_table(tmp_path / "out.parquet")
    types = [table.schema.field(name).type for name in ("text", "prompt_tokens", "stars", "input_text", "price")]
    assert types == [pa.string(), pa.int64(), pa.int64(), pa.string(), pa.float64()]
    assert table.column("stars").to_pylist() == [4, None]


def test_a_table_of_which_every_line_failed_has_its_columns(tmp_path: Path) -> None:
    for format in ("csv", "parquet"):
        write(tmp_path / f"{format}.{format}", [failed(0)])
        assert rows(tmp_path / f"{format}.{format}") == []
    assert (tmp_path / "csv.csv").read_text().startswith("custom_id,text,")
    assert pq.read_schema(tmp_path / "parquet.parquet").names[:2] == ["custom_id", "text"]


def odd(n: int, **message: Any) -> Result:
    """A result whose message has more than a text."""
    line = orjson.loads(done(n).line)
    line["response"]["body"]["choices"][0]["message"] |= message
    return Result(f"{n + 1}-0", orjson.dumps(line), n)


def several(n: int) -> Result:
    line = orjson.loads(done(n, keep={"stars": 1}).line)
    line["response"]["body"]["choices"] *= 2
    return Result(f"{n + 1}-0", orjson.dumps(line), n)


def test_a_table_gets_columns_for_thoughts_calls_and_choices_when_they_come(tmp_path: Path) -> None:
    call = {"id": "call_1", "function": {"name": "f", "arguments": "{}"}}
    results = [
        done(0, 'a\n"b",c'),
        odd(1, reasoning="So,\nso.", content="yes"),
        odd(2, reasoning=None),
        odd(3, tool_calls=[call], content=None),
        done(4),
    ]
    for format in ("csv", "parquet"):
        path = tmp_path / f"out.{format}"
        with Output(path, "b") as output:
            for result in results[:2]:
                output.write(result)
        with Output(path, "b") as output:  # what is gone on with keeps its columns
            for result in results[2:]:
                output.write(result)
            output.sort()
            output.finish()
        found = rows(path)
        assert [row["custom_id"] for row in found] == [f"r-{n}" for n in range(5)]
        assert [row["reasoning"] or "" for row in found] == ["", "So,\nso.", "", "", ""]
        assert [row["text"] or "" for row in found] == ['a\n"b",c', "yes", "yes", "", "yes"]
        calls = [row["tool_calls"] or "" for row in found]
        assert calls == ["", "", "", orjson.dumps([call]).decode(), ""]
        assert stray(tmp_path) <= {f"out.{each}.draftmill.json" for each in FORMATS}
    header = (tmp_path / "out.csv").read_text().splitlines()[0]
    assert header.endswith(",tokens_per_round,reasoning,tool_calls")


def test_a_table_has_all_of_all_choices_behind_what_was_kept(tmp_path: Path) -> None:
    call = {"id": "call_1", "function": {"name": "f", "arguments": "{}"}}
    logprobs = {"content": [{"token": "no", "logprob": -0.5}], "refusal": None}
    line = orjson.loads(several(2).line)
    first = line["response"]["body"]["choices"][0]
    second = first | {"finish_reason": "length", "logprobs": logprobs, "message": {"content": None, "reasoning": "So."}}
    third = first | {"message": {"content": "no", "tool_calls": [call]}}
    line["response"]["body"]["choices"] = [first, second, third]
    whole = {
        "texts": ["yes", None, "no"],
        "finish_reasons": ["stop", "length", "stop"],
        "all_reasoning": [None, "So.", None],
        "all_tool_calls": [None, None, [call]],
        "all_logprobs": [None, logprobs, None],
    }
    for format in ("csv", "parquet"):
        path = tmp_path / f"out.{format}"
        write(path, [done(0, keep={"stars": 1}), several(1), Result("3-0", orjson.dumps(line), 2)])
        plain, two, three = rows(path)
        assert list(plain)[-6:] == ["stars", *whole]
        assert not any(plain[name] for name in whole)
        assert [two[name] or "" for name in whole] == ['["yes","yes"]', '["stop","stop"]', "", "", ""]
        assert {name: orjson.loads(three[name]) for name in whole} == whole


def test_a_table_has_log_probabilities_and_what_could_not_be_done(tmp_path: Path) -> None:
    line = orjson.loads(done(1).line)
    logprobs = {"content": [{"token": "yes", "logprob": -0.5}], "refusal": None}
    line["response"]["body"]["choices"][0]["logprobs"] = logprobs
    line["response"]["body"]["draftmill"] = {"notes": ["it cannot think"]}
    for format in ("csv", "parquet"):
        path = tmp_path / f"out.{format}"
        write(path, [done(0), Result("2-0", orjson.dumps(line), 1)])
        first, second = rows(path)
        assert not first["logprobs"]
        assert not first["draftmill_notes"]
        assert orjson.loads(second["logprobs"]) == logprobs
        assert orjson.loads(second["draftmill_notes"]) == ["it cannot think"]


def test_a_kept_column_is_never_taken_for_one_of_ours() -> None:
    assert names(["reasoning", "texts", "stars", "input_texts"]) == [
        "input_reasoning",
        "input_texts",
        "stars",
        "input_input_texts",
    ]


@given(cut=st.integers(0, 400))
@settings(max_examples=40, deadline=None)
def test_a_table_that_was_cut_gets_its_columns_again(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("out") / "out.csv"
    results = [done(0, 'a\n"b"'), odd(1, reasoning="So."), done(2)]
    with Output(path, "b") as output:
        for result in results:
            output.write(result)
    with path.open("r+b") as file:
        file.truncate(min(cut, path.stat().st_size))
    write(path, results)
    assert {row["custom_id"]: row["reasoning"] for row in rows(path)} == {"r-0": "", "r-1": "So.", "r-2": ""}
