"""/v1/batches: create, retrieve, list and cancel. What happens to a batch in between is the runner's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .api_errors import ApiError, missing
from .batch_record import BatchRecord, cancelling, read
from .files import Files
from .pages import json_object, page
from .runner import Runner

MOST_OPEN = 100
"""Unfinished batches of a user; each has a thread."""


class Batches:
    """The batches of all users, each of which may take `window` seconds at least; who `tells` tells how each ended."""

    def __init__(self, files: Files, runner: Runner, window: float, tells: bool = False) -> None:
        self._files, self._runner, self._shelf, self._window = files, runner, runner.shelf, window
        self._tells = tells

    @property
    def routes(self) -> Iterator[Route]:
        yield Route("/v1/batches", self.create, methods=["POST"])
        yield Route("/v1/batches", self.list, methods=["GET"])
        yield Route("/v1/batches/{id}", self.retrieve, methods=["GET"])
        yield Route("/v1/batches/{id}/cancel", self.cancel, methods=["POST"])

    async def create(self, request: Request) -> Response:
        record = read(await json_object(request), request.state.user, self._window)
        record = replace(record, to_tell=self._tells)
        await run_in_threadpool(self._open, record)
        return JSONResponse(record.public())

    def _open(self, record: BatchRecord) -> None:
        file = self._files.find(record.input_file_id, record.user)
        if file is None:
            raise missing("File object", record.input_file_id, "input_file_id")
        if file.purpose != "batch":
            message = f"The file's purpose is '{file.purpose}'; it must be 'batch'."
            raise ApiError(400, message, param="input_file_id", code="invalid_value")
        if sum(other.is_open for other in self._shelf if other.user == record.user) >= MOST_OPEN:
            raise ApiError(429, f"You have {MOST_OPEN} unfinished batches; wait for one.", code="too_many_batches")
        self._runner.open(record, self._files.path(file.id))

    def list(self, request: Request) -> Response:
        return page(request, self._shelf, limit=20, most=100)

    def retrieve(self, request: Request) -> Response:
        return JSONResponse(self._find(request).public())

    def cancel(self, request: Request) -> Response:
        """Marks the batch as cancelling; the runner does the rest."""
        return JSONResponse(self._shelf.update(self._find(request).id, cancelling).public())

    def _find(self, request: Request) -> BatchRecord:
        id = request.path_params["id"]
        if record := self._shelf.find(id, request.state.user):
            return record
        raise missing("Batch object", id, "batch_id")
