"""The results file: what stands in OUT and its error file is what is done, and each line stands there once.

Whoever opens OUT reads which lines have a result. Only a record that a cut tore at its end is removed. Beside OUT
lies a manifest, `OUT.draftmill.json`, with what OUT cannot say.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ..input.dataset import BadLine, key_of
from ..queue.batches import Result
from ..queue.errors import UserError
from . import manifest as manifests
from .earlier import adopt_errors
from .errors import ErrorFile
from .files import GrowingFile, WriteError, remove, removed, replacing, size
from .formats import ERRORS, MANIFEST, ORDER, PARTIAL, extra_in, extras, format_of, notes_in, widened
from .manifest import Manifest, difference
from .order import Order
from .places import Place
from .records import FAULTS, add, changed, odd


def errors_of(out: Path) -> Path:
    """The error file of OUT, which has OUT's whole name in its own, so that no two outputs share one."""
    return out.with_name(out.name + ERRORS)


class Output:
    """OUT, its error file `OUT.errors.jsonl` and its manifest, for one batch; a context manager.

    A Parquet file cannot grow: new rows stand in `OUT.partial.jsonl` until the batch is complete. If OUT is a link, the
    file that it leads to is written; what lies beside OUT lies beside the link. `send` takes all of this to the `place`
    of an OUT at a URL. `source`, `parameters` and `content` tell what the batch is of, for the day when OUT is named
    for another one. `keys` stand for the custom_ids of all its lines, where these are known: then OUT must have no
    other. With `force` what would be refused is overwritten. `notes` counts what workers could not do, by the results
    that were added.
    """

    def __init__(
        self,
        place: Path | Place,
        batch: str,
        force: bool = False,
        source: str = "",
        parameters: Mapping[str, Any] | None = None,
        content: str = "",
        keys: Collection[int] | None = None,
    ) -> None:
        self.place = place if isinstance(place, Place) else Place(place)
        self.path = path = self.place.path
        self.errors = ErrorFile(errors_of(path))
        self._format = format_of(path)
        if self._format.packed:
            from . import parquet  # says at once that its package is missing

            self._parquet = parquet
        self._stream_path = path.with_name(path.name + PARTIAL) if self._format.packed else path
        self._manifest_path = path.with_name(path.name + MANIFEST)
        self._order = Order(path.with_name(path.name + ORDER), self._stream_path)
        self.notes: Counter[str] = Counter()
        self._done: set[int] = set()
        self._has_packed = False
        self._extra: list[str] = []
        self._out = GrowingFile(self._stream_path)
        try:
            new = Manifest(batch, content, source, dict(parameters or {}), token=secrets.token_hex(8))
            try:
                self.manifest = self._go_on(new, keys)
            except UserError as error:
                if not force or isinstance(error, WriteError):
                    raise
                self.manifest = self._start_over(new)
            if manifests.read(self._manifest_path) != asdict(self.manifest):
                self._save_manifest()
            self.place.claim()
        except UserError:
            self._out.close()
            self.errors.close()
            if self._format.packed and not size(self._stream_path):
                self._stream_path.unlink()
            raise

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.save()
                self.errors.tidy()
        finally:
            is_ours = self._out.is_there
            for file in (self._out, self.errors, self._order):
                with suppress(OSError, WriteError):  # a full disk has been reported before
                    file.close()
        if self._is_untouched:
            self._manifest_path.unlink(missing_ok=True)
            self._order.remove()
        if is_ours and (self._is_untouched or (self._format.packed and self.is_packed)):
            self._stream_path.unlink(missing_ok=True)

    @property
    def _is_untouched(self) -> bool:
        """Whether there is nothing to be kept yet."""
        return not (self._done or self.errors.failed or self.errors.bad or self.manifest.columns is not None)

    @property
    def done(self) -> int:
        """Lines that have a result."""
        return len(self._done)

    @property
    def failed(self) -> int:
        """Lines that stand in the error file because they failed."""
        return len(self.errors.failed)

    @property
    def ended(self) -> int:
        return self.done + self.failed

    @property
    def bad(self) -> int:
        """Lines that stand in the error file because they cannot run."""
        return self.errors.bad

    @property
    def is_packed(self) -> bool:
        """Whether OUT itself has all results; else a Parquet file is still to be made of some."""
        return not self._format.packed or (size(self.path) > 0 and not size(self._stream_path))

    @property
    def holder(self) -> Path:
        """The file that has the results now: OUT, or what it will be made of."""
        return self.path if self.is_packed else self._stream_path

    def has(self, custom_id: str) -> bool:
        """Whether a line has ended: with a result in OUT, or as a failure in the error file."""
        key = key_of(custom_id)
        return key in self._done or key in self.errors.failed

    def write(self, result: Result) -> None:
        """Adds a result to OUT, or to the error file if it is an error; not if OUT has one of that line.

        A line that failed before has this result instead.
        """
        line = orjson.loads(result.line)
        key = key_of(line["custom_id"])
        self._order.add(key, result.n)
        if key in self._done:
            return
        if line.get("error") is not None:
            self.errors.add(result.line, line)
            return
        if self._format.headed:
            self._widen(extras(line))
        record = self._format.record(result.line, line, self._columns(line.get("keep") or {}), self._extra)
        if self.manifest.in_order:
            self.manifest.in_order = False
            self._save_manifest()
        self._out.write(record)
        self.notes.update(notes_in(line))
        self._done.add(key)
        self.errors.drop(key)

    def write_bad(self, line: BadLine) -> None:
        """Adds a line that could not be submitted to the error file, unless it stands there."""
        record = line.record()
        self.errors.add(orjson.dumps(record), record)

    def write_all_bad(self, lines: Sequence[BadLine]) -> None:
        """The same for all of a batch's; others that stand there count no longer."""
        self.errors.keep_bad({line.id for line in lines})
        for line in lines:
            self.write_bad(line)

    def flush(self) -> None:
        """Shows what was written to whoever reads the files (`tail -f`)."""
        self._order.flush()
        self._out.flush()
        self.errors.flush()

    def save(self) -> None:
        """Puts what was written on the disk; raises WriteError if it is not where it belongs then."""
        self._order.sync()
        self._out.sync()
        self.errors.sync()

    def send(self) -> None:
        """Saves what was written, and sends it if OUT is at a URL. Raises UserError; then it stays on this machine."""
        self.save()
        if not self._is_untouched:
            self.place.send()

    @contextmanager
    def sent_if_cut(self) -> Iterator[None]:
        """Sends what there is if something ends what is done here; what cannot be sent stays on this machine."""
        try:
            yield
        except BaseException:
            with suppress(UserError, KeyboardInterrupt):
                self.send()
            raise

    def finish(self) -> None:
        """OUT has all results that it is to have for now: makes it what its format wants, and the error file tidy."""
        self._columns(())
        self.save()
        self.errors.tidy()
        if not self.is_packed:
            self._unpack()
            with self._stream_path.open("rb") as rows, replacing(self.path) as target:
                self._parquet.pack(rows, target)
            self._has_packed = True
            self._out.truncate(0)
        self._order.remove()

    def sort(self, numbers: Mapping[int, int] | None = None) -> None:
        """Puts the results in the order of the line numbers that `numbers` has for each key of a custom_id.

        By default these are the numbers that came with the results. A Parquet file is in order once `finish` made it.
        """
        if self.manifest.in_order:
            return
        numbers = self._order.numbers() if numbers is None else numbers
        if not self._done <= numbers.keys():
            raise UserError(
                f"the order of all lines of {self.manifest.batch} is no longer known; run again without --sorted, "
                "or let `draftmill run` sort them by its INPUT"
            )
        self._unpack()
        self.save()
        places: list[tuple[int, int, int]] = []
        offset = 0
        for _, custom_id, record in self._records():
            places.append((-1 if custom_id is None else numbers[key_of(custom_id)], offset, len(record)))
            offset += len(record)
        with self._stream_path.open("rb") as source, replacing(self._stream_path) as target:
            for _, start, length in sorted(places):
                source.seek(start)
                target.write(source.read(length))
        self._out.close()
        self._out = GrowingFile(self._stream_path)
        self.manifest.in_order = True
        self._save_manifest()

    def _columns(self, keep: Sequence[str] | Mapping[str, Any]) -> list[str]:
        """The kept columns; the first result decides on them. A new file begins with its header."""
        if self.manifest.columns is None:
            self.manifest.columns = list(keep)
            self._save_manifest()
        if self._out.is_empty:
            self._out.write(self._format.header(self.manifest.columns, self._extra))
        return self.manifest.columns

    def _widen(self, extra: Collection[str]) -> None:
        """Gives all results columns that the next one needs."""
        new = [name for name in extra if name not in self._extra]
        if not new:
            return
        self._extra += new
        if self._out.is_empty:
            return
        self.save()
        with replacing(self._stream_path) as target:
            for _, custom_id, record in self._records():
                target.write(widened(record, new if custom_id is None else [""] * len(new)))
        self._out.close()
        self._out = GrowingFile(self._stream_path)

    def _go_on(self, new: Manifest, keys: Collection[int] | None) -> Manifest:
        """Reads what an earlier command left here of the same lines; refuses to touch anything else."""
        found = self._found(new)
        self._load()
        if keys is not None:
            self._refuse_others(keys)
        return found

    def _found(self, new: Manifest) -> Manifest:
        """The manifest to go on with."""
        content = manifests.read(self._manifest_path)
        out, errors = max(size(self.path), size(self._stream_path)), size(self.errors.path)
        there = self.path if size(self.path) else self._stream_path if out else self.errors.path
        if content is None:
            if out or errors:
                raise UserError(f"{str(there)!r} exists; choose another file or overwrite it with --force")
            return new
        found = Manifest.of(content)
        if found.is_of(new):
            adopt_errors(self.path, self.errors.path, content)
            token = found.token or new.token
            return replace(new, columns=found.columns, in_order=found.in_order, token=token, told=found.told)
        if out:
            raise UserError(
                f"{self.place.name!r} holds {found.batch}, not {new.batch} "
                f"({difference(found, new.source, new.parameters)}); choose another file or overwrite it with --force"
            )
        return self._start_over(new)  # its user has removed OUT

    def _start_over(self, new: Manifest) -> Manifest:
        self._out.truncate(0)
        if self._format.packed:
            remove(self.path)
        self.errors.close()
        remove(self.errors.path)
        self.errors = ErrorFile(self.errors.path)
        self._order.remove()
        self._load()
        return new

    def _load(self) -> None:
        """Reads which lines have ended, and cuts off what a cut tore."""
        length = 0
        self._done.clear()
        self._extra.clear()
        for number, custom_id, record in self._records():
            if custom_id is not None:
                add(self._done, custom_id, self._stream_path, number)
            else:
                self._extra = extra_in(record)
            length += len(record)
        self._has_packed = self._format.packed and size(self.path) > 0
        rows: set[int] = set()  # which may stand among the others as well
        for row, custom_id in self._rows():
            add(rows, custom_id, self.path, row)
        self._done |= rows
        self._out.truncate(length)
        self.errors.load(self._done)

    def _refuse_others(self, keys: Collection[int]) -> None:
        """Names the first line, if any, that is of none of `keys`."""
        if sum(key in self._done or key in self.errors.failed for key in keys) == self.ended:
            return
        others = self._done.difference(keys) | self.errors.failed.difference(keys)
        for path, number, custom_id in self._places():
            if key_of(custom_id) in others:
                raise odd(path, number, custom_id, "is not of this INPUT")

    def _places(self) -> Iterator[tuple[Path, int, str]]:
        """The custom_id of each result and failure, with its file and its line there, or row."""
        for number, custom_id, _ in self._records():
            if custom_id is not None:
                yield self._stream_path, number, custom_id
        yield from ((self.path, row, custom_id) for row, custom_id in self._rows())
        yield from ((self.errors.path, number, line["custom_id"]) for number, line in self.errors.failures())

    def _records(self) -> Iterator[tuple[int, str | None, bytes]]:
        """The whole records of the file that grows: where each begins (its line), its custom_id if it has one, it."""
        count, number = 0, 1
        try:
            with self._stream_path.open("rb") as file:
                for custom_id, record in self._format.records(file):
                    yield number, custom_id, record
                    count += 1
                    number += record.count(b"\n")
        except FAULTS:
            raise changed(self._stream_path, f"record {count + 1} is no result") from None

    def _rows(self) -> Iterator[tuple[int, str]]:
        """The number and the custom_id of each row of OUT itself, if it is a Parquet file that is there."""
        if self._has_packed:
            with self._reading_packed() as packed:
                yield from enumerate(self._parquet.ids(packed), 1)

    def _unpack(self) -> None:
        """Adds the rows of a Parquet file to those that came since, where all of them can be sorted and packed anew."""
        if not self._has_packed:
            return
        if not self.path.exists():
            raise removed(self.path)
        there = {key_of(custom_id) for _, custom_id, _ in self._records() if custom_id is not None}
        with self._reading_packed() as packed:
            for row in self._parquet.unpack(packed):
                if key_of(orjson.loads(row)["custom_id"]) not in there:
                    self._out.write(row)
        self._out.sync()

    @contextmanager
    def _reading_packed(self) -> Iterator[BinaryIO]:
        """OUT itself, if it is a Parquet file."""
        try:
            with self.path.open("rb") as file:
                yield file
        except FAULTS:
            raise changed(self.path, "it is no Parquet file of results") from None

    def remember(self, event: str) -> None:
        """Notes that others were told of this."""
        self.manifest.told = event
        self._save_manifest()

    def _save_manifest(self) -> None:
        with replacing(self._manifest_path, self.path) as file:
            file.write(self.manifest.dump())
