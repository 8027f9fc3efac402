"""/v1/files: what users upload for batches, and what batches put out. Contents lie in a folder, records beside them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from ...output.files import WriteError, replacing
from .errors import ApiError, missing
from .pages import limited, page
from .records import Record, Shelf, new_id

MOST_BYTES = 200 * 2**20
"""Bytes of an uploaded file; OpenAI's limit of 200 MB."""
FORM_BYTES = 2**20
"""What the rest of the upload's form may take."""
TOO_LARGE = "The file is larger than 200 MB; split it into several batches."


@dataclass(frozen=True, kw_only=True)
class FileRecord(Record):
    filename: str
    purpose: str
    bytes: int

    def public(self) -> dict[str, object]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": int(self.created),
            "expires_at": None,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class Files:
    """The files of all users, in `folder`. A file exists once its record does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.shelf = Shelf(folder, FileRecord)
        for path in folder.iterdir():  # what a kill left of an upload
            if path.suffix != ".json" and path.name not in self.shelf:
                path.unlink()

    @property
    def routes(self) -> Iterator[Route]:
        yield Route("/v1/files", self.upload, methods=["POST"])
        yield Route("/v1/files", self.list, methods=["GET"])
        yield Route("/v1/files/{id}", self.retrieve, methods=["GET"])
        yield Route("/v1/files/{id}", self.delete, methods=["DELETE"])
        yield Route("/v1/files/{id}/content", self.content, methods=["GET"])

    def path(self, id: str) -> Path:
        """Where the content of a file lies."""
        return self._folder / id

    async def upload(self, request: Request) -> Response:
        """Takes a form with `purpose` and `file`; what is larger than a megabyte goes to the disk as it comes."""
        async with limited(request, MOST_BYTES + FORM_BYTES, TOO_LARGE).form(max_files=1, max_fields=8) as form:
            file, purpose = form.get("file"), form.get("purpose")
            if purpose != "batch":
                raise ApiError(400, "Files are for batches: purpose must be 'batch'.", param="purpose")
            if not isinstance(file, UploadFile):
                raise ApiError(400, "Missing required parameter: 'file'.", param="file")
            if unknown := sorted(set(form) - {"file", "purpose"}):
                raise ApiError(400, f"'{unknown[0]}' is not supported; files stay until deleted.", param=unknown[0])
            if (file.size or 0) > MOST_BYTES:
                raise ApiError(413, TOO_LARGE, param="file", code="request_too_large")
            record = await run_in_threadpool(self._store, file.file, file.filename or "upload", request.state.user)
        return JSONResponse(record.public())

    def _store(self, source: BinaryIO, name: str, user: str) -> FileRecord:
        id = new_id("file-")
        path = self.path(id)
        with replacing(path) as target:
            shutil.copyfileobj(source, target, 2**20)
        record = FileRecord(id=id, user=user, filename=name, purpose="batch", bytes=path.stat().st_size)
        try:
            self.shelf.put(record)
        except WriteError:
            path.unlink()
            raise
        return record

    def publish(self, id: str, source: Path, name: str, user: str) -> None:
        """Makes a file that lies on the same disk an output file. Repeating it is harmless."""
        if id in self.shelf:
            return
        self.path(id).unlink(missing_ok=True)
        os.link(source, self.path(id))
        size = source.stat().st_size
        self.shelf.put(
            FileRecord(id=id, user=user, created=time.time(), filename=name, purpose="batch_output", bytes=size)
        )

    def list(self, request: Request) -> Response:
        purpose = request.query_params.get("purpose")
        found = (record for record in self.shelf if purpose in (None, record.purpose))
        return page(request, found, limit=10_000, most=10_000)

    def retrieve(self, request: Request) -> Response:
        return JSONResponse(self._find(request).public())

    def content(self, request: Request) -> Response:
        record = self._find(request)
        return FileResponse(self.path(record.id), media_type="application/octet-stream", filename=record.filename)

    def delete(self, request: Request) -> Response:
        """Deletes a file; batches made of it go on, they have a link of their own."""
        record = self._find(request)
        self.shelf.remove(record.id)
        self.path(record.id).unlink(missing_ok=True)
        return JSONResponse({"id": record.id, "object": "file", "deleted": True})

    def _find(self, request: Request) -> FileRecord:
        id = request.path_params["id"]
        if record := self.shelf.find(id, request.state.user):
            return record
        raise missing("File object", id)
