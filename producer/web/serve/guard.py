"""The check of API keys in front of every request."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..door import Closed, Door
from ..keys import is_this_machine
from .api_errors import ApiError


class Guard:
    """Lets a request through with its user as `request.state.user`, or answers it with an error.

    Without keys everybody is `nobody`, and only requests for this machine by name are taken. Paths in `free` are for
    everybody.
    """

    def __init__(self, app: ASGIApp, door: Door, nobody: str, free: Collection[str]) -> None:
        self.app, self.door, self.nobody, self.free = app, door, nobody, free

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.free:
            try:
                address = scope["client"][0] if scope.get("client") else ""
                scope.setdefault("state", {})["user"] = self._user(Headers(scope=scope), address)
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _user(self, headers: Headers, address: str) -> str:
        if not self.door.needs_key:
            if not is_this_machine(headers):
                raise ApiError(403, "Without API keys this server answers to localhost only.")
            return self.nobody
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refused("You didn't provide an API key: Authorization: Bearer KEY.")
        try:
            user = self.door.user(key.strip(), address)
        except Closed as closed:
            wait = {"Retry-After": str(closed.seconds)}
            raise ApiError(429, str(closed), code="too_many_wrong_keys", headers=wait) from None
        if user is None:
            raise _refused("Incorrect API key provided.")
        return user


def _refused(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
