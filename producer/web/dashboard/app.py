"""The dashboard as an ASGI application: its pages, files and events, and the one change that it can make."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import redis as redis_py
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...queue import batches
from ...queue.errors import UserError, explain
from ..door import Closed
from ..keys import Keys
from .access import Access
from .failures import Asked, FailuresPage
from .feed import Feed
from .view import Observer

LOG = logging.getLogger("draftmill.dashboard")

STATIC = Path(__file__).parent / "static"
MOST_WATCHING = 200
WRONG_KEY = "This key is not accepted."

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Page:
    """The routes of the dashboard of one Redis; `where` names it in messages."""

    def __init__(self, redis: redis_py.Redis, where: str, keys: Keys) -> None:
        self._redis = redis
        self._access = Access(keys)
        self.feed = Feed(Observer(redis), where)
        self._failures = FailuresPage(redis, STATIC)
        self._page = (STATIC / "index.html").read_text("utf-8")
        self._sign_in_page = (STATIC / "sign-in.html").read_text("utf-8")

    @property
    def routes(self) -> Iterator[Route | Mount]:
        yield Route("/", self.index)
        yield Route("/sign-in", self.sign_in, methods=["POST"])
        yield Route("/sign-out", self.sign_out, methods=["POST"])
        yield Route("/session", self.session)
        yield Route("/events", self.events)
        yield Route("/failures", self.failures)
        yield Route("/batches/{batch}/cancel", self.cancel, methods=["POST"])
        yield Mount("/static", StaticFiles(directory=STATIC))

    async def index(self, request: Request) -> Response:
        if self._access.needs_key and not self._access.may_look(request):
            return HTMLResponse(self._sign_in_page, 401)
        self._access.check_look(request)
        return HTMLResponse(self._page)

    async def sign_in(self, request: Request) -> Response:
        response = RedirectResponse(".", 303)
        try:
            if await self._access.sign_in(request, response):
                return response
        except Closed as closed:
            return self._wrong(429, str(closed), {"retry-after": str(closed.seconds)})
        return self._wrong(401, WRONG_KEY)

    def _wrong(self, status: int, why: str, headers: dict[str, str] | None = None) -> Response:
        """The sign-in page again."""
        said = f'<p class="wrong" role="alert">{why}</p>'
        return HTMLResponse(self._sign_in_page.replace("<!-- wrong -->", said), status, headers)

    async def sign_out(self, request: Request) -> Response:
        response = RedirectResponse(".", 303)
        self._access.sign_out(request, response)
        return response

    async def session(self, request: Request) -> Response:
        """Who has signed in, if anybody, and the token that changes must show."""
        self._access.check_look(request)
        session = self._access.session(request)
        return JSONResponse({"user": session.user, "token": session.token} if session else {})

    async def events(self, request: Request) -> Response:
        self._access.check_look(request)
        if self.feed.watching >= MOST_WATCHING:
            raise HTTPException(503, f"{MOST_WATCHING} pages are open already; close one.")
        compressed = "gzip" in request.headers.get("accept-encoding", "")
        headers = {"x-accel-buffering": "no"}  # else nginx keeps events back until they fill a buffer
        if compressed:
            headers["content-encoding"] = "gzip"
        stream = self.feed.stream(compressed, request.app.state.stopping)
        return StreamingResponse(stream, headers=headers, media_type="text/event-stream")

    async def failures(self, request: Request) -> Response:
        """Why lines of a batch failed, and which."""
        if self._access.needs_key and not self._access.may_look(request):
            return RedirectResponse(".", 303)
        self._access.check_look(request)
        try:
            page = await run_in_threadpool(self._failures.write, Asked.of(request.query_params))
        except (redis_py.RedisError, UserError) as error:
            return HTMLResponse(self._failures.trouble(explain(error).message), 500)
        return HTMLResponse(page or self._failures.trouble("There is no such batch."), 200 if page else 404)

    async def cancel(self, request: Request) -> Response:
        session = self._access.check_change(request)
        batch = request.path_params["batch"]
        state = await run_in_threadpool(batches.status, self._redis, batch)
        if state is None:
            raise HTTPException(404, "There is no such batch.")
        if state.complete:
            raise HTTPException(409, "This batch has ended already.")
        await run_in_threadpool(batches.cancel, self._redis, batch)
        LOG.info("%s cancelled %s", session.user, batch)
        return Response(status_code=204)


class SafeHeaders:
    """Sets on every response what browsers may do with it; nothing but static files is kept by them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers["cache-control"] = "no-cache" if scope["path"].startswith("/static/") else "no-store"
            await send(message)

        await self.app(scope, receive, send_with_headers)


async def on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def on_error(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": explain(error).message}, 500)


def create_app(redis: redis_py.Redis, where: str, keys: Keys) -> Starlette:
    """The dashboard of a Redis, which `where` names in messages."""
    page = Page(redis, where, keys)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        looking = asyncio.create_task(page.feed.run())
        yield
        looking.cancel()

    return Starlette(
        routes=list(page.routes),
        middleware=[Middleware(SafeHeaders)],
        exception_handlers={HTTPException: on_http, redis_py.RedisError: on_error, UserError: on_error},
        lifespan=lifespan,
    )
