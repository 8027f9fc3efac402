"""Every format a dataset may have: the same rows come out, in memory that does not grow, and damage is one line."""

from __future__ import annotations

import csv
import gzip
import io
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from draftmill.producer.input.dataset import BadLine, Dataset
from draftmill.producer.input.defaults import Defaults
from draftmill.producer.input.rows import RowOptions
from draftmill.producer.input.sources import open_source
from draftmill.producer.queue.errors import UserError

ROWS = [{"name": f"n{n}", "text": f'täxt {n}, “quoted” "{n}"\n{"x" * n}', "stars": n % 5} for n in range(600)]


def as_jsonl() -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in ROWS)


def as_csv(delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def as_parquet(table: pa.Table | None = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table or pa.Table.from_pylist(ROWS), sink, row_group_size=100)
    return sink.getvalue()


def save_dataset(folder: Path, rows: list[dict[str, Any]]) -> None:
    """What `datasets` writes in `save_to_disk`, in two files."""
    folder.mkdir(parents=True)
    half = len(rows) // 2
    for n, part in enumerate((rows[:half], rows[half:])):
        table = pa.Table.from_pylist(part)
        with pa.OSFile(str(folder / f"{n}.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table, max_chunksize=1000)
    (folder / "state.json").write_bytes(orjson.dumps({"_data_files": [{"filename": f"{n}.arrow"} for n in range(2)]}))


FORMATS: dict[str, Callable[[], bytes]] = {
    "x.jsonl": as_jsonl,
    "x.jsonl.gz": lambda: gzip.compress(as_jsonl()),
    "x.jsonl.zst": lambda: zstandard.compress(as_jsonl()[:5000]) + zstandard.compress(as_jsonl()[5000:]),
    "x.csv": lambda: b"\xef\xbb\xbf" + as_csv(),
    "x.csv.gz": lambda: gzip.compress(as_csv()),
    "x.tsv": lambda: as_csv("\t"),
    "x.parquet": as_parquet,
    "x.PARQUET": as_parquet,
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_yields_the_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FORMATS[name]())
    source = open_source(str(tmp_path / name))
    expected = [row | {"stars": str(row["stars"])} for row in ROWS] if name[2:4] in ("cs", "ts") else ROWS
    for _ in range(2):
        rows = list(source.rows())
        assert [row for _, row in rows] == expected
        numbers = [number for number, _ in rows]
        assert numbers == (sorted(set(numbers)) if name[2:4] in ("cs", "ts") else list(range(1, len(ROWS) + 1)))


def test_saved_datasets(tmp_path: Path) -> None:
    save_dataset(tmp_path / "plain", ROWS)
    save_dataset(tmp_path / "one/train", ROWS[:5])
    save_dataset(tmp_path / "two/train", ROWS[:5])
    save_dataset(tmp_path / "two/test", ROWS[5:])
    for name in ("one", "two"):
        (tmp_path / name / "dataset_dict.json").write_text("{}")
    assert [row for _, row in open_source(str(tmp_path / "plain")).rows()] == ROWS
    assert [row for _, row in open_source(str(tmp_path / "one")).rows()] == ROWS[:5]
    assert [row for _, row in open_source(str(tmp_path / "two/test")).rows()] == ROWS[5:]
    with pytest.raises(UserError, match=r"has the splits test, train; name one: .*two/test"):
        open_source(str(tmp_path / "two"))


def test_values_become_what_json_has(tmp_path: Path) -> None:
    row = {
        "when": datetime(2024, 5, 6, 7, 8, 9),
        "price": Decimal("1.50"),
        "tags": ["a", None],
        "nested": {"at": datetime(2024, 1, 1), "raw": b"text"},
        "image": b"\xff\xd8",
    }
    table = pa.Table.from_pylist([row]).append_column("ns", pa.array([1_700_000_000_000_000_001], pa.timestamp("ns")))
    (tmp_path / "x.parquet").write_bytes(as_parquet(table))
    [(_, found)] = open_source(str(tmp_path / "x.parquet")).rows()
    assert found == {
        "when": "2024-05-06T07:08:09",
        "price": "1.50",
        "tags": ["a", None],
        "nested": {"at": "2024-01-01T00:00:00", "raw": "text"},
        "image": b"\xff\xd8",
        "ns": "2023-11-14T22:13:20",
    }


FAR = pa.array([0, 2**62, None], pa.timestamp("ms"))
UNREADABLE = {
    "date": pa.array([0, 2**31 - 1, 0], pa.int32()).cast(pa.date32()),
    "time": FAR,
    "zone": pa.array([0, 1, 2], pa.timestamp("us", "Nowhere/None")),
    "duration": pa.array([0, 2**62, 0], pa.duration("s")),
    "nested": pa.StructArray.from_arrays([FAR], ["at"]),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("folder", [False, True])
def test_values_that_python_cannot_hold_harm_only_who_uses_them(name: str, folder: bool, tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b", "c"], "text": ["x", "y", "z"], name: UNREADABLE[name]})
    path = tmp_path / "x.parquet"
    if folder:
        path.mkdir()
        with pa.OSFile(str(path / "0.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
        (path / "state.json").write_bytes(orjson.dumps({"_data_files": [{"filename": "0.arrow"}]}))
    else:
        path.write_bytes(as_parquet(table))

    def read(**options: Any) -> list[Any]:
        return list(Dataset(str(path), "p", Defaults(), RowOptions(**options)))

    assert [item.custom_id for item in read(template="{{ text }}", where="id != 'c'")] == ["a", "b"]
    for options in ({"template": "{{ text }}", "keep": (name,)}, {"template": "{{ row.text }}"}):
        bad = [item for item in read(**options) if isinstance(item, BadLine)]
        assert 2 in [item.number for item in bad]
        assert all(item.reason.startswith(f"column '{name}' cannot be read: ") for item in bad)


def test_columns_that_are_not_used_are_still_named(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["x"], "far": FAR[1:2], "dict": ["d"]})
    (tmp_path / "x.parquet").write_bytes(as_parquet(table))
    dataset = Dataset(str(tmp_path / "x.parquet"), "p", Defaults(), RowOptions(keep=("dict",)))
    (item,) = dataset
    assert not isinstance(item, BadLine)
    assert item.keep == {"dict": "d"}
    assert dict(dataset.notes) == {'field "far" is unknown and ignored': 1}
    (item,) = Dataset(str(tmp_path / "x.parquet"), "p", Defaults(), RowOptions(template="{{ txt }}"))
    assert str(item) == "line 1: template: 'txt' is undefined (columns: prompt, far, dict)"
    (item,) = Dataset(str(tmp_path / "x.parquet"), "p", Defaults(), RowOptions(template="{{ dict }}"))
    assert not isinstance(item, BadLine)
    assert item.messages
    assert item.messages[0].content == "d"


def test_bytes_are_not_kept_wherever_they_lie(tmp_path: Path) -> None:
    raw = b"\xff\xd8"
    for value in (raw, {"image": {"bytes": raw}}, [{"bytes": raw}]):
        table = pa.Table.from_pylist([{"text": "x", "extra": value}])
        (tmp_path / "x.parquet").write_bytes(as_parquet(table))
        options = RowOptions(template="{{ text }}", keep=("extra",))
        (item,) = Dataset(str(tmp_path / "x.parquet"), "p", Defaults(), options)
        assert str(item) == "line 1: column 'extra' is binary and cannot be kept"


def test_bad_rows_of_a_csv_harm_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'id,text\na,one\nb\nc,"x"y\nd,caf\xe9\n\ne,"two\nlines"\nf,last\n')
    items = list(Dataset(str(path), "p", Defaults(), RowOptions(template="{{ text }}")))
    assert [item.custom_id if not isinstance(item, BadLine) else str(item) for item in items] == [
        "a",
        "line 3: has 1 fields, the header has 2",
        """line 4: not CSV: ',' expected after '"'""",
        "line 5: not UTF-8: column 'text'",
        "e",
        "f",
    ]


DAMAGED: dict[str, tuple[bytes, str]] = {
    "a.jsonl.gz": (
        gzip.compress(as_jsonl())[:-20],
        "is damaged: compressed file ended before .*; make or fetch it anew",
    ),
    "b.jsonl.gz": (gzip.compress(as_jsonl()) + b"rubbish", "is damaged: not a gzipped file"),
    "a.csv.gz": (gzip.compress(as_csv())[:-20], "is damaged: compressed file ended"),
    "a.jsonl.zst": (zstandard.compress(as_jsonl())[:-20], "is damaged: its last zstd frame is cut off"),
    "b.jsonl.zst": (zstandard.compress(as_jsonl()) + b"rubbish", "is damaged: zstd"),
    "a.parquet": (as_parquet()[:-20], "is damaged or not a Parquet file: "),
    "b.parquet": (b"PAR1" + as_csv() + b"PAR1", "is damaged or not a Parquet file: "),
    "c.parquet": (b"", "is damaged or not a Parquet file: "),
    "a.csv": (b'id,text\na,one\nb,"never closed\nc,three\n', "a quote on line 3 is never closed"),
    "e.csv": (b'id,text\na,"' + b"x\n" * 9_000_000, "line 2 begins a field of more than 16,777,216 characters"),
    "b.csv": ("id,text\na,b\n".encode("utf-16"), "no header of a CSV file in UTF-8"),
    "c.csv": (b"id,text,id\n1,2,3\n", "has the column 'id' twice"),
    "d.csv": (b"id,text\n", "is empty"),
    "a.xlsx": (b"PK\x03\x04\xff\xfe rubbish", "has no usable line; line 1: not UTF-8"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_error(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Dataset(str(tmp_path / name), "p", Defaults(), RowOptions(template="{{ text }}")).survey()
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_saved_dataset_may_be_damaged(tmp_path: Path) -> None:
    save_dataset(tmp_path / "x", ROWS)
    whole = (tmp_path / "x/1.arrow").read_bytes()
    (tmp_path / "x/1.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"1\.arrow is damaged or not a file of a saved dataset"):
        list(open_source(str(tmp_path / "x")).rows())
    (tmp_path / "x/1.arrow").unlink()
    with pytest.raises(UserError, match=r"1\.arrow is damaged"):
        list(open_source(str(tmp_path / "x")).rows())
    (tmp_path / "x/state.json").write_text("[]")
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        open_source(str(tmp_path / "x"))


ARRAY = "x.jsonl is a JSON array; JSON lines are needed: jq -c '.[]'"
PRETTY = "x.jsonl is JSON over several lines; one object a line is needed: jq -c ."
LINE = b'{"prompt": "a"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (orjson.dumps(ROWS, option=orjson.OPT_INDENT_2), ARRAY),
        (b"\xef\xbb\xbf" + orjson.dumps(ROWS[:2]), ARRAY),
        (b"\n\n[\n" + LINE + b"\n]\n", ARRAY),
        (b"[" + LINE + b",\n " + LINE + b"]\n", ARRAY),
        (b'["a", "b"]', ARRAY),
        (orjson.dumps(ROWS[0], option=orjson.OPT_INDENT_2), PRETTY),
        (b'{\r\n  "prompt": "a"\r\n}\r\n{\r\n  "prompt": "b"\r\n}\r\n', PRETTY),
        (b"{", PRETTY),
    ],
)
def test_one_document_is_no_json_lines(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(UserError) as caught:
        Dataset(str(tmp_path / "x.jsonl"), "p", Defaults()).survey()
    assert caught.value.message == str(tmp_path / message)


@pytest.mark.parametrize("bad", [b'[{"role": "user"}]', b"[2026-11-26] log", b"[1]", b'{"prompt": "cut', b"{"])
def test_a_first_line_that_is_bad_harms_no_other(bad: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(bad + b"\n" + LINE + b"\n" + LINE)
    first, *others = Dataset(str(tmp_path / "x.jsonl"), "p", Defaults())
    assert isinstance(first, BadLine)
    assert [item.custom_id for item in others] == ["line-2", "line-3"]


def test_a_text_that_is_not_utf8_harms_its_own_row(tmp_path: Path) -> None:
    array = pa.StringArray.from_buffers(3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb"))
    (tmp_path / "x.parquet").write_bytes(as_parquet(pa.table({"text": array})))
    first, second, third = Dataset(str(tmp_path / "x.parquet"), "p", Defaults(), RowOptions(template="{{ text }}"))
    assert isinstance(second, BadLine)
    assert str(second).startswith("line 2: column 'text' cannot be read: 'utf-8' codec")
    assert not isinstance(first, BadLine)
    assert not isinstance(third, BadLine)


SURVEY = """
import re, resource, sys
from pathlib import Path
from draftmill.producer.input.dataset import Dataset
from draftmill.producer.input.defaults import Defaults
from draftmill.producer.input.rows import RowOptions
survey = Dataset(sys.argv[1], "p", Defaults(), RowOptions(template="{{ text }}")).survey()
status = Path("/proc/self/status")  # Linux counts the parent's memory in ru_maxrss
if status.exists():
    peak = int(re.search(r"VmHWM:\\s*(\\d+)", status.read_text())[1]) // 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**20
print(survey.good, peak)
"""


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl.gz", "x.jsonl.zst", "x.parquet", "folder"])
def test_memory_does_not_grow_with_the_dataset(name: str, tmp_path: Path) -> None:
    """100 MB of text in 20,000 rows; the whole of it in memory would take more than the limit."""
    rows = ({"text": f"{n} {'word ' * 1000}"} for n in range(20_000))
    path = tmp_path / name
    schema = pa.schema({"text": pa.string()})
    match path.suffix:
        case ".csv":
            path.write_text("text\n" + "".join(f"{row['text']}\n" for row in rows))
        case ".gz":
            with gzip.open(path, "wb", 1) as file:
                file.writelines(orjson.dumps(row) + b"\n" for row in rows)
        case ".zst":
            with path.open("wb") as out, zstandard.ZstdCompressor().stream_writer(out) as file:
                for row in rows:
                    file.write(orjson.dumps(row) + b"\n")
        case ".parquet":
            with pq.ParquetWriter(path, schema, use_dictionary=False) as file:
                for _ in range(2):
                    file.write_table(pa.Table.from_pylist([next(rows) for _ in range(10_000)], schema))
        case _:
            save_dataset(path, list(rows))
    # Without the BLAS that the engine's tests preload: it takes 40 MB, and a producer has no use for it.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [sys.executable, "-c", SURVEY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    good, megabytes = map(int, done.stdout.split())
    assert good == 20_000
    assert megabytes < 160
