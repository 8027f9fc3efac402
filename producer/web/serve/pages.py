"""Lists of objects, a page at a time, and bodies of requests, up to a size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message

from ...queue.wire import MOST_BODY_BYTES
from .errors import ApiError
from .records import R

MOST_DRAINED = 2**31
"""Bytes of a request that is too large that are read and dropped, so that its client gets to read the answer."""


def page(request: Request, records: Iterable[R], limit: int, most: int) -> Response:
    """The user's records, newest first unless `order` says otherwise: `limit` of them, from the one behind `after`."""
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise ApiError(400, f"'{order}' is no order; use 'asc' or 'desc'.", param="order", code="invalid_value")
    own = [record for record in records if record.user == request.state.user]
    own.sort(key=lambda record: (record.created, record.id), reverse=order == "desc")
    if after := request.query_params.get("after"):
        place = next((n for n, record in enumerate(own) if record.id == after), None)
        if place is None:
            raise ApiError(400, f"No such object: {after}", param="after", code="invalid_value")
        own = own[place + 1 :]
    count = _limit(request, limit, most)
    data = [record.public() for record in own[:count]]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return JSONResponse({"object": "list", "data": data, **ends, "has_more": len(own) > count})


def _limit(request: Request, default: int, most: int) -> int:
    given = request.query_params.get("limit", str(default))
    if not given.isdecimal() or not 1 <= int(given) <= most:
        message = f"'{given}' is no limit; use an integer from 1 to {most}."
        raise ApiError(400, message, param="limit", code="invalid_value")
    return int(given)


def limited(request: Request, most: int, message: str) -> Request:
    """The request, which is refused with 413 once its body has more bytes than `most`."""
    count = 0

    async def receive() -> Message:
        nonlocal count
        part = await request.receive()
        count += len(part.get("body", b""))
        if count > most:
            while part.get("more_body") and count < MOST_DRAINED:
                part = await request.receive()
                count += len(part.get("body", b""))
            raise ApiError(413, message, code="request_too_large")
        return part

    return Request(request.scope, receive)


async def json_object(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body."""
    too_large = f"The request is larger than {MOST_BODY_BYTES:,} bytes."
    try:
        value = orjson.loads(await limited(request, MOST_BODY_BYTES, too_large).body())
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The body of the request is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body of the request is not a JSON object.", code="invalid_json")
    return value
