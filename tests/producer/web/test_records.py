"""Records of `draftmill serve` that a later version wrote, or a disk damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from draftmill.producer.queue.errors import UserError
from draftmill.producer.web.serve.batch_record import BatchRecord
from draftmill.producer.web.serve.files import FileRecord, Files
from draftmill.producer.web.serve.records import Shelf
from tests.producer.conftest import Shell
from tests.producer.web.serving import Server, counts, create, jsonl, request, wait, worker
from tests.redis_server import RedisServer

LATER = {"tier": "night", "parts": [1, {"a": None}]}
BATCH = BatchRecord(
    id="batch_1",
    user="ann",
    endpoint="/v1/completions",
    input_file_id="file-1",
    completion_window="24h",
    expires_at=2_000_000_000,
    metadata=None,
)


def kept(folder: Path, id: str) -> dict[str, object]:
    return orjson.loads((folder / f"{id}.json").read_bytes())


def change(folder: Path, id: str) -> None:
    """Adds what a later version knows."""
    (folder / f"{id}.json").write_bytes(orjson.dumps(kept(folder, id) | LATER))


def test_fields_of_a_later_version_are_ignored_and_kept(tmp_path: Path) -> None:
    Shelf(tmp_path, BatchRecord).put(BATCH)
    change(tmp_path, BATCH.id)
    shelf = Shelf(tmp_path, BatchRecord)
    assert list(shelf) == [BATCH]
    assert "tier" not in shelf[BATCH.id].public()
    shelf.update(BATCH.id, lambda batch: replace(batch, total=3))
    assert kept(tmp_path, BATCH.id).items() >= (LATER | {"total": 3}).items()
    shelf.remove(BATCH.id)
    shelf.put(BATCH)
    assert not kept(tmp_path, BATCH.id).keys() & LATER.keys()


def test_a_file_of_a_later_version_keeps_its_content(tmp_path: Path) -> None:
    Files(tmp_path).shelf.put(FileRecord(id="file-1", user="ann", filename="a", purpose="batch", bytes=1))
    change(tmp_path, "file-1")
    (tmp_path / "file-1").write_bytes(b"x")
    assert Files(tmp_path).path("file-1").read_bytes() == b"x"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"id": "batch_1"}', b"\xff"])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "batch_1.json").write_bytes(content)
    with pytest.raises(UserError, match=r"batch_1\.json' is damaged; restore it from a copy, or move it away"):
        Shelf(tmp_path, BatchRecord)


def test_a_server_goes_on_with_what_a_later_one_left(redis_server: RedisServer, shell: Shell) -> None:
    server = Server(shell, redis_server.url)
    server.start()
    try:
        with worker(redis_server.url, redis_server.folder / "spool", round_seconds=0.02):
            made = create(server.client(), jsonl(request("a", tokens=200)))
            wait(server.client(), made.id, lambda batch: batch.status == "in_progress")
            server.kill()
            for folder, id in (("files", made.input_file_id), ("batches", made.id)):
                change(shell.folder / "files" / folder, id)
            server.start()
            assert counts(wait(server.client(), made.id)) == (1, 1, 0)
        assert kept(shell.folder / "files/batches", made.id).items() >= LATER.items()
    finally:
        server.kill()
