"""Errors in OpenAI's form: `{"error": {message, type, param, code}}` with the HTTP status that its clients expect."""

from __future__ import annotations

import logging
from typing import Any

import redis.exceptions as rx
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ...queue.errors import UserError, explain

LOG = logging.getLogger("draftmill.serve")

NOT_AGAIN = {"x-should-retry": "false"}
"""Header that keeps OpenAI's clients from repeating a request by themselves."""


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def response(self) -> Response:
        return JSONResponse(body(self.status, self.message, self.param, self.code), self.status, self.headers)


def body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON that goes with an HTTP status."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def missing(kind: str, id: str, param: str = "id") -> ApiError:
    """There is no such object, or it is another user's, which is the same."""
    return ApiError(404, f"No such {kind}: {id}", param=param, code="not_found")


async def on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def on_http(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: an unknown path or method, a form that it cannot read."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message, code = f"Invalid URL ({request.method} {request.url.path})", "unknown_url"
    elif error.status_code == 405:
        message, code = f"Not allowed to {request.method} on {request.url.path}", "method_not_supported"
    else:
        message, code = str(error.detail), None
    headers = dict(error.headers) if error.headers else None
    return ApiError(error.status_code, message, code=code, headers=headers).response()


async def on_disconnect(_: Request, __: Exception) -> Response:
    """The client went away while it was sending; nobody reads this answer."""
    return Response(status_code=400)


async def on_failure(_: Request, error: Exception) -> Response:
    """Redis out of reach, or a full disk: the operator reads which in the log, the client when to try again."""
    LOG.warning("a request failed: %s", explain(error).message)
    if isinstance(error, rx.RedisError):
        return ApiError(503, "The server cannot reach its queue; try again in a moment.", code="no_queue").response()
    return ApiError(507, "The server cannot keep this; its log says why.", code="not_stored").response()


async def on_defect(_: Request, __: Exception) -> Response:
    """A defect; its traceback goes to the log."""
    return ApiError(500, "The server failed at this request; its log says where.", headers=NOT_AGAIN).response()


HANDLERS: dict[Any, Any] = {
    ApiError: on_api_error,
    HTTPException: on_http,
    ClientDisconnect: on_disconnect,
    rx.RedisError: on_failure,
    OSError: on_failure,
    UserError: on_failure,
    Exception: on_defect,
}
