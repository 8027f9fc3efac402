"""/v1/files: what users upload for batches, and what batches put out. Contents lie in a folder, records beside them."""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from ...output.files import WriteError, replacing
from .api_errors import ApiError, missing
from .pages import limited, page
from .records import Record, Shelf, new_id

MOST_BYTES = 200 * 2**20
"""Bytes of an uploaded file; OpenAI's limit of 200 MB."""
FORM_BYTES = 2**20
"""What the rest of the upload's form may take."""
TOO_LARGE = "The file is larger than 200 MB; split it into several batches."
SOONEST, LATEST = 3600, 30 * 86400
"""Seconds after which files may expire, as OpenAI has them. Without being asked none does."""
EXPIRY = ("expires_after[anchor]", "expires_after[seconds]")
"""How forms write `expires_after`."""


@dataclass(frozen=True, kw_only=True)
class FileRecord(Record):
    filename: str
    purpose: str
    bytes: int
    expires_at: int | None = None

    @property
    def is_expired(self) -> bool:
        return self.expires_at is not None and time.time() >= self.expires_at

    def public(self) -> dict[str, object]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": int(self.created),
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class Files:
    """The files of all users, in `folder`. A file exists once its record does, and no longer once it has expired, or is
    older than `retention` in seconds.
    """

    def __init__(self, folder: Path, retention: float = math.inf) -> None:
        self._folder, self._retention = folder, retention
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
            if unknown := sorted(set(form) - {"file", "purpose", *EXPIRY}):
                raise ApiError(400, f"'{unknown[0]}' is not supported.", param=unknown[0], code="unknown_parameter")
            lasts = _lasts(form)
            if (file.size or 0) > MOST_BYTES:
                raise ApiError(413, TOO_LARGE, param="file", code="request_too_large")
            name = file.filename or "upload"
            record = await run_in_threadpool(self._store, file.file, name, request.state.user, lasts)
        return JSONResponse(record.public())

    def _store(self, source: BinaryIO, name: str, user: str, lasts: int | None) -> FileRecord:
        id, now = new_id("file-"), time.time()
        path = self.path(id)
        with replacing(path) as target:
            shutil.copyfileobj(source, target, 2**20)
        about = {"filename": name, "purpose": "batch", "bytes": path.stat().st_size}
        record = FileRecord(id=id, user=user, created=now, expires_at=self._end(now, lasts), **about)
        try:
            self.shelf.put(record)
        except WriteError:
            path.unlink()
            raise
        return record

    def publish(self, id: str, source: Path, name: str, user: str, lasts: int | None) -> None:
        """Makes a file that lies on the same disk an output file, for `lasts` seconds. Repeating it is harmless."""
        if id in self.shelf:
            return
        self.path(id).unlink(missing_ok=True)
        os.link(source, self.path(id))
        about = {"filename": name, "purpose": "batch_output", "bytes": source.stat().st_size}
        now = time.time()
        self.shelf.put(FileRecord(id=id, user=user, created=now, expires_at=self._end(now, lasts), **about))

    def find(self, id: str, user: str) -> FileRecord | None:
        """The user's file of that id."""
        record = self.shelf.find(id, user)
        return None if record is None or self._is_over(record) else record

    def sweep(self) -> None:
        """Deletes the files that have expired."""
        for record in self.shelf:
            if self._is_over(record):
                self._remove(record)

    def list(self, request: Request) -> Response:
        purpose = request.query_params.get("purpose")
        found = (record for record in self.shelf if purpose in (None, record.purpose) and not self._is_over(record))
        return page(request, found, limit=10_000, most=10_000)

    def retrieve(self, request: Request) -> Response:
        return JSONResponse(self._find(request).public())

    def content(self, request: Request) -> Response:
        record = self._find(request)
        return FileResponse(self.path(record.id), media_type="application/octet-stream", filename=record.filename)

    def delete(self, request: Request) -> Response:
        """Deletes a file; batches made of it go on, they have a link of their own."""
        record = self._find(request)
        self._remove(record)
        return JSONResponse({"id": record.id, "object": "file", "deleted": True})

    def _remove(self, record: FileRecord) -> None:
        self.shelf.remove(record.id)
        self.path(record.id).unlink(missing_ok=True)

    def _is_over(self, record: FileRecord) -> bool:
        """Whether it has expired. The retention of a server holds for what came before it was started, too."""
        return record.is_expired or time.time() >= record.created + self._retention

    def _end(self, begin: float, lasts: int | None) -> int | None:
        seconds = min(self._retention, math.inf if lasts is None else lasts)
        return None if seconds == math.inf else int(begin) + int(seconds)

    def _find(self, request: Request) -> FileRecord:
        id = request.path_params["id"]
        if record := self.find(id, request.state.user):
            return record
        raise missing("File object", id)


def expiry(given: Any, name: str) -> int | None:
    """The seconds of an `expires_after` of OpenAI's; raises ApiError, which calls it `name`."""
    if given is None:
        return None
    seconds = given.get("seconds") if isinstance(given, dict) else None
    if not isinstance(given, dict) or given.get("anchor") != "created_at":
        raise ApiError(400, f"{name} needs the anchor 'created_at'.", param=f"{name}.anchor", code="invalid_value")
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not SOONEST <= seconds <= LATEST:
        message = f"{name} needs seconds from {SOONEST:,} (1 hour) to {LATEST:,} (30 days)."
        raise ApiError(400, message, param=f"{name}.seconds", code="invalid_value")
    return seconds


def _lasts(form: FormData) -> int | None:
    anchor, seconds = (form.get(name) for name in EXPIRY)
    if anchor is seconds is None:
        return None
    whole = int(seconds) if isinstance(seconds, str) and re.fullmatch(r"[0-9]{1,9}", seconds) else None
    return expiry({"anchor": anchor, "seconds": whole}, "expires_after")
