"""The check of API keys in front of every request."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..keys import Keys, is_this_machine
from .api_errors import ApiError


class Guard:
    """Lets a request through with its user as `request.state.user`, or answers it with an error.

    Without keys everybody is `nobody`, and only requests for this machine by name are taken.
    """

    def __init__(self, app: ASGIApp, keys: Keys, nobody: str) -> None:
        self.app, self.keys, self.nobody = app, keys, nobody

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope.setdefault("state", {})["user"] = self._user(Headers(scope=scope))
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _user(self, headers: Headers) -> str:
        if not self.keys:
            if not is_this_machine(headers):
                raise ApiError(403, "Without API keys this server answers to localhost only.")
            return self.nobody
        scheme, _, key = headers.get("authorization", "").partition(" ")
        user = self.keys.user(key.strip()) if scheme.lower() == "bearer" else None
        if user is None:
            message = (
                "Incorrect API key provided." if key else "You didn't provide an API key: Authorization: Bearer KEY."
            )
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return user
