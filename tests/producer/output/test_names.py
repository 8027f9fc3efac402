"""What OUT may be called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from draftmill.producer.output.formats import format_of
from draftmill.producer.queue.errors import UserError
from tests.producer.conftest import Shell

OTHERS = [
    "o.csv.gz",
    "o.tsv",
    "o.xlsx",
    "o.jsonl.gz",
    "o.gz",
    "o.jsonl.zst",
    "o.parquet.tmp",
    "o.html",
    "O.TSV",
    ".tsv",
]


@pytest.mark.parametrize("command", ["run", "collect"])
def test_a_name_that_promises_another_format_is_refused(shell: Shell, command: str) -> None:
    shell.write("in.jsonl", '{"prompt": "a"}\n')
    what = "in.jsonl" if command == "run" else "batch_0"
    for out in ("o.csv.gz", "-"):
        refused = shell(command, what, "-o", out)
        assert (refused.returncode, refused.stderr.count("\n"), refused.stdout) == (2, 1, "")
        assert refused.stderr.startswith(f"Error: cannot write '{out}': ")
    assert os.listdir(shell.folder) == ["in.jsonl"]


def test_every_other_extension_is_refused_by_its_name() -> None:
    for out in OTHERS:
        with pytest.raises(UserError) as refused:
            format_of(Path("folder", out))
        assert refused.value.message == (
            f"cannot write 'folder/{out}': .{out.rpartition('.')[2].lower()} is no format of results; "
            "end the name in .jsonl, .csv or .parquet"
        )
    for out in ("o.jsonl.errors.jsonl", "o.parquet.partial.jsonl"):
        with pytest.raises(UserError, match="draftmill keeps files of such names"):
            format_of(Path(out))
    for out in ("o", "o.jsonl", "o.ndjson", "a.b.CSV", "o.parquet"):
        format_of(Path(out))
