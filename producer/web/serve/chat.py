"""/v1/chat/completions, /v1/completions, /v1/responses: a call is an urgent batch of one request, waited for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import redis as redis_py
import redis.exceptions as rx
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...input.lines import Defaults, Fault, job_body
from ...input.notes import Notes
from ...queue import batches
from ...queue.batches import BatchInfo
from ...queue.wire import PRIORITIES, JobBody
from .api_errors import NOT_AGAIN, ApiError, body
from .forms.translation import ENDPOINTS, Translation
from .metrics import Metrics
from .models import Models
from .pages import json_object
from .records import new_id

BLOCK_SECONDS = 1.0
"""How long Redis is asked to wait for a result before the client is looked after."""
MOST_WAITING = 500
"""Calls that wait in a thread at once; if there are more, they take turns."""
END_PAUSE = 0.5
END_SECONDS = 60.0
"""How long a cancelled call that runs is looked after; then the server's next start does it."""
STOP_SECONDS = 5.0

MOST_NOTES, MOST_NOTE = 20, 200
"""Notes of a call, and characters of each, that its header has room for."""


class Chat:
    """Calls that wait for their result, at most `timeout` seconds.

    `folder` has an empty file for each call that Redis knows; those that a kill leaves are dropped at the next start.
    """

    def __init__(self, redis: redis_py.Redis, models: Models, metrics: Metrics, folder: Path, timeout: float) -> None:
        self._redis, self._models, self._metrics, self._folder, self._timeout = redis, models, metrics, folder, timeout
        self._threads = ThreadPoolExecutor(MOST_WAITING, "draftmill-call")
        self._endings: set[asyncio.Task[None]] = set()
        folder.mkdir(mode=0o700, exist_ok=True)

    @property
    def routes(self) -> Iterator[Route]:
        for endpoint in ENDPOINTS:
            yield Route(endpoint, self.complete, methods=["POST"])

    async def complete(self, request: Request) -> Response:
        asked = await json_object(request)
        if asked.get("stream"):
            message = "Streaming is not supported: calls are queued and answered whole. Remove 'stream'."
            raise ApiError(400, message, param="stream", code="unsupported_value")
        pair = await run_in_threadpool(self._models.check, asked.get("model"))
        adapter = await run_in_threadpool(self._models.adapter, asked["model"])
        adapters = {asked["model"]: adapter} if adapter else {}
        translation = Translation(request.url.path, pair, asked["model"], adapters)
        job, notes = _job(asked, translation)
        try:
            await run_in_threadpool(self._queue, job, request.state.user)
            with self._metrics.waiting():
                line = await self._wait(request, job)
        except asyncio.CancelledError:
            raise ApiError(503, "The server was stopped before the result came; ask again.", code="stopped") from None
        finally:
            self._drop(job.batch)
        return _answer(line, asked, translation, notes)

    def start(self) -> None:
        """Drops the calls that an earlier server left."""
        for path in self._folder.iterdir():
            self._drop(path.name)

    async def stop(self) -> None:
        """Waits a little for the calls that are being dropped."""
        if self._endings:
            await asyncio.wait(self._endings, timeout=STOP_SECONDS)

    def _queue(self, job: JobBody, user: str) -> None:
        (self._folder / job.batch).touch()
        batch = BatchInfo(job.batch, job.pair, PRIORITIES[0], 1, "a call", user)
        batches.create(self._redis, batch)
        batches.submit_chunk(self._redis, batch, [job])

    async def _wait(self, request: Request, job: JobBody) -> dict[str, Any]:
        """The output line of the job; raises if it takes too long or the client goes away."""
        loop, deadline = asyncio.get_running_loop(), time.monotonic() + self._timeout
        while (line := await loop.run_in_executor(self._threads, self._result, job.batch)) is None:
            if await request.is_disconnected():
                raise ClientDisconnect
            if time.monotonic() > deadline:
                raise await run_in_threadpool(self._too_late, job.pair)
        return line

    def _result(self, batch: str) -> dict[str, Any] | None:
        """The output line of the one request, if it comes within a moment."""
        found = batches.read(self._redis, batch, "0-0", 1, BLOCK_SECONDS)
        return orjson.loads(found[0].line) if found else None

    def _too_late(self, pair: str) -> ApiError:
        workers = self._models.live()[pair]
        served = (
            f"{workers} live workers serve" if workers > 1 else "a live worker serves" if workers else "none serves"
        )
        message = f"No result within {self._timeout:g} seconds; the request is cancelled ({served} {pair})."
        return ApiError(504, message, code="timeout", headers=NOT_AGAIN)

    def _drop(self, batch: str) -> None:
        ending = asyncio.create_task(self._end(batch))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def _end(self, batch: str) -> None:
        """Leaves nothing of a call in Redis; cancels it if it is not done."""
        deadline = time.monotonic() + END_SECONDS
        with suppress(rx.RedisError):
            while time.monotonic() < deadline and not await run_in_threadpool(self._ended, batch):
                await asyncio.sleep(END_PAUSE)

    def _ended(self, batch: str) -> bool:
        state = batches.status(self._redis, batch)
        if state and not state.complete:
            batches.cancel(self._redis, batch)
            return False
        batches.forget(self._redis, batch)
        (self._folder / batch).unlink(missing_ok=True)
        return True


def _job(asked: dict[str, Any], translation: Translation) -> tuple[JobBody, list[str]]:
    """The one job of a new batch, and notes about what is ignored; raises ApiError if the request is wrong."""
    id, notes = new_id("call_"), Notes()
    line = {"custom_id": id, "method": "POST", "url": translation.endpoint, "body": asked}
    try:
        line, said = translation.line(line)
        job = job_body(line, id, 1, translation.pair, Defaults(served=True), notes)
    except Fault as fault:
        raise ApiError(400, f"{fault}.", code="invalid_request") from None
    return job.model_copy(update={"batch": id}), [*said, *(note for note, _ in notes)]


def _answer(line: dict[str, Any], asked: dict[str, Any], translation: Translation, notes: list[str]) -> Response:
    """The response that an output line holds; one that failed without a response is a server's error."""
    if response := line["response"]:
        answer, status = response["body"], response["status_code"]
        if status == 200:
            notes = [*notes, *answer.get("draftmill", {}).get("notes", ())]
            answer = translation.answer(asked, answer)
        return JSONResponse(answer, status, {"x-request-id": response["request_id"], **_noted(notes)})
    error = line["error"]
    return JSONResponse(body(500, error["message"], code=error["code"]), 500, NOT_AGAIN)


def _noted(notes: list[str]) -> dict[str, str]:
    """The header that tells what was ignored: a JSON list of texts, in ASCII."""
    shown = [note[:MOST_NOTE] for note in notes[:MOST_NOTES]]
    if len(notes) > MOST_NOTES:
        shown.append(f"{len(notes) - MOST_NOTES:,} more notes")
    return {"x-draftmill-notes": json.dumps(shown)} if shown else {}
