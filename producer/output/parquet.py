"""Rows of JSON to a Parquet file and back, some thousands at a time. Needs pyarrow, the extra `data`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 5_000
"""Rows in memory at a time, and in a row group."""

OWN = {
    "custom_id": pa.string(),
    "text": pa.string(),
    "finish_reason": pa.string(),
    "prompt_tokens": pa.int64(),
    "completion_tokens": pa.int64(),
    "tokens_per_round": pa.float64(),
}
INT64 = range(-(2**63), 2**63)


def pack(source: BinaryIO, target: BinaryIO) -> None:
    """Writes the rows of `source`, lines of JSON, as a Parquet file.

    A kept column is of whole numbers, of numbers, of truths or of text, whichever holds all its values; what is mixed
    or nested becomes text, as JSON.
    """
    source.seek(0)
    schema = _schema(orjson.loads(line) for line in source)
    source.seek(0)
    with pq.ParquetWriter(target, schema, write_page_checksum=True) as writer:
        while lines := list(islice(source, ROWS)):
            rows = [orjson.loads(line) for line in lines]
            columns = [pa.array([_value(row.get(of.name), of.type) for row in rows], of.type) for of in schema]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def unpack(source: BinaryIO) -> Iterator[bytes]:
    """The rows of a Parquet file as lines of JSON; raises ValueError or TypeError if it is damaged."""
    for batch in _batches(source):
        for row in batch.to_pylist():
            yield orjson.dumps(row) + b"\n"


def ids(source: BinaryIO) -> Iterator[str]:
    """The custom_id of each row of a Parquet file; raises ValueError or LookupError if it is damaged."""
    for batch in _batches(source, ["custom_id"]):
        yield from batch.column(0).to_pylist()


def _batches(source: BinaryIO, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    try:
        yield from pq.ParquetFile(source, page_checksum_verification=True).iter_batches(ROWS, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(str(error)) from error


def _schema(rows: Iterable[dict[str, Any]]) -> pa.Schema:
    kinds: dict[str, set[Any]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(_kind(value))
    kept = {name: _type(found) for name, found in kinds.items() if name not in OWN}
    return pa.schema(list((OWN | kept).items()))


def _kind(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and value not in INT64:
        return str
    return type(value)


def _type(kinds: set[Any]) -> pa.DataType:
    match kinds - {type(None)}:
        case found if found == {bool}:
            return pa.bool_()
        case found if found == {int}:
            return pa.int64()
        case found if found and found <= {int, float}:
            return pa.float64()
        case _:
            return pa.string()


def _value(value: Any, type: pa.DataType) -> Any:
    if value is None or isinstance(value, str):
        return value
    if pa.types.is_floating(type):
        return float(value)
    return orjson.dumps(value).decode() if pa.types.is_string(type) else value
