"""Reads Parquet files and datasets saved by Hugging Face's `datasets` (`save_to_disk`), with pyarrow alone."""

from __future__ import annotations

from collections.abc import Iterator, Set
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ..queue.errors import UserError
from .request.faults import Fault

SLICE = 256
"""Rows that are Python objects at a time."""
BUFFER = 2**20
"""Bytes of each column of a Parquet file that are read ahead."""


class Parquet:
    """A Parquet file; rows are numbered from 1."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name

    def rows(self, used: Set[str] | None = None, /) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        def batches() -> Iterator[Any]:
            try:
                parquet = pq.ParquetFile(self._file, buffer_size=BUFFER, pre_buffer=False)
                yield from parquet.iter_batches(SLICE, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                raise _damaged(self._name, "a Parquet file", error) from error

        self._file.seek(0)
        return _numbered(batches(), used)


class SavedDataset:
    """A folder that `save_to_disk` wrote: a dataset, or several splits of which one is named or is the only one."""

    def __init__(self, folder: Path) -> None:
        if (folder / "dataset_dict.json").exists():
            folder = _only_split(folder)
        if not (folder / "state.json").exists():
            raise UserError(
                f"cannot read {str(folder)!r}: it is a folder, and not one of a saved dataset (it has no state.json); "
                "name a file"
            )
        try:
            files = orjson.loads((folder / "state.json").read_bytes())["_data_files"]
            self._files = [folder / file["filename"] for file in files]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise _damaged(str(folder / "state.json"), "the state of a saved dataset", error) from error

    def rows(self, used: Set[str] | None = None, /) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
        import pyarrow as pa

        def batches() -> Iterator[Any]:
            for file in self._files:
                try:
                    with pa.OSFile(str(file)) as opened, pa.ipc.open_stream(opened) as stream:
                        for batch in stream:
                            yield from (batch.slice(start, SLICE) for start in range(0, batch.num_rows, SLICE))
                except (pa.ArrowException, OSError) as error:
                    raise _damaged(str(file), "a file of a saved dataset", error) from error

        return _numbered(batches(), used)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((folder / name).exists() for name in ("dataset_dict.json", "state.json"))


def _only_split(folder: Path) -> Path:
    splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
    if len(splits) == 1:
        return folder / splits[0]
    raise UserError(
        f"{str(folder)!r} has the splits {', '.join(splits)}; name one: {folder / (splits or ['SPLIT'])[0]}"
    )


def _damaged(name: str, what: str, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return UserError(f"{name} is damaged or not {what}: {reason}")


def _numbered(batches: Iterator[Any], used: Set[str] | None) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    return enumerate((row for batch in batches for row in _rows(batch, used)), 1)


def _rows(batch: Any, used: Set[str] | None) -> Iterator[dict[str, Any] | Fault]:
    """The rows of a batch. Columns that are not used stay None: what is wrong in them harms nobody."""
    columns = {
        name: _values(name, column) if used is None or name in used else [None] * batch.num_rows
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }
    for place in range(batch.num_rows):
        row = {name: values[place] for name, values in columns.items()}
        yield next((value for value in row.values() if isinstance(value, Fault)), row)


def _values(name: str, column: Any) -> list[Any]:
    """The values of a column as JSON has them; one that Python cannot hold (a date in the year 30000) is a Fault."""
    import pyarrow as pa

    try:
        return [_plain(value) for value in _in_microseconds(column).to_pylist()]
    except (ValueError, OverflowError, LookupError, pa.ArrowException) as error:
        if len(column) == 1:
            return [Fault(f"column {name!r} cannot be read: {error}")]
        return [value for place in range(len(column)) for value in _values(name, column.slice(place, 1))]


def _in_microseconds(column: Any) -> Any:
    """Python's times have no nanoseconds."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        return column.cast(pa.timestamp("us", column.type.tz), safe=False)
    return column


def _plain(value: Any) -> Any:
    """A value as JSON has it. Bytes that are no text stay bytes: they only harm who uses them."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return value
        case dict():
            return {name: _plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case datetime() | date() | time():
            return value.isoformat()
        case _:
            return str(value)
