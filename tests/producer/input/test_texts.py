"""A folder of text files as INPUT: a row for each file."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftmill.producer.input.dataset import BadLine, Dataset
from draftmill.producer.input.defaults import Defaults
from draftmill.producer.input.rows import RowOptions
from draftmill.producer.queue.errors import UserError
from draftmill.producer.queue.wire import JobBody

TEMPLATE = "Summarise {{ path.split('/')[-1] }}: {{ text }}"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "b.txt").write_text("Tea in Kyōto\n", encoding="utf-8")
    (notes / "a.txt").write_bytes(b"\xef\xbb\xbfBread {{ not a tag }}")
    (notes / "c.md").write_text("# Soup")
    (notes / "folder.txt").mkdir()
    return notes


def dataset(source: object) -> Dataset:
    return Dataset(str(source), "p", Defaults(), RowOptions(template=TEMPLATE))


def test_each_text_file_is_a_row(notes: Path) -> None:
    first, second = dataset(notes)
    assert isinstance(first, JobBody)
    assert isinstance(second, JobBody)
    assert (first.custom_id, first.line) == ("a.txt", 1)
    assert first.messages
    assert first.messages[0].content == "Summarise a.txt: Bread {{ not a tag }}"
    assert second.messages
    assert second.messages[0].content == "Summarise b.txt: Tea in Kyōto\n"


def test_a_pattern_names_others(notes: Path) -> None:
    assert [item.custom_id for item in dataset(notes / "*.md")] == ["c.md"]
    assert [item.custom_id for item in dataset(notes / "*.*")] == ["a.txt", "b.txt", "c.md"]


def test_a_folder_may_change_while_it_is_read(notes: Path) -> None:
    opened = dataset(notes)
    survey = opened.survey()
    (notes / "a.txt").unlink()
    (notes / "b.txt").write_text("other")
    (notes / "d.txt").write_text("new")
    assert [item.custom_id for item in opened] == ["a.txt", "b.txt"]
    assert opened.survey() == survey
    assert dataset(notes).survey().content != survey.content


def test_files_that_are_no_text_are_named(notes: Path) -> None:
    (notes / "a.txt").write_bytes(b"caf\xe9")
    (notes / "d.txt").symlink_to(notes / "nowhere")
    assert [item for item in dataset(notes) if isinstance(item, BadLine)] == [
        BadLine(1, "a.txt is not UTF-8 at byte 3")
    ]


def test_without_text_files_it_is_refused(notes: Path) -> None:
    with pytest.raises(UserError, match=r"a folder without \*\.rst files"):
        dataset(notes / "*.rst")
