"""Who may look at the page and who may cancel: keys, sessions in cookies, and the checks of every change.

Without keys the page is for this machine only, and read-only. With keys everybody signs in with one first, and may
then cancel. Sessions are in memory: a dashboard that was restarted asks for the key again.
"""

from __future__ import annotations

import hmac
import secrets
import time
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..door import Door
from ..keys import Keys, is_this_machine

COOKIE = "draftmill_session"
TOKEN_HEADER = "x-draftmill-token"
SESSION_SECONDS = 12 * 3600
MOST_SESSIONS = 1000
MOST_FORM_BYTES = 4096


@dataclass(frozen=True)
class Session:
    """Somebody who has signed in; every change must show `token`, which other sites cannot read."""

    user: str
    token: str
    until: float


class Access:
    """The doorkeeper of one dashboard."""

    def __init__(self, keys: Keys) -> None:
        self._door = Door(keys)
        self._sessions: dict[str, Session] = {}

    @property
    def needs_key(self) -> bool:
        return self._door.needs_key

    def session(self, request: Request) -> Session | None:
        found = self._sessions.get(request.cookies.get(COOKIE, ""))
        return found if found and found.until > time.monotonic() else None

    def may_look(self, request: Request) -> bool:
        if not self.needs_key:
            return is_this_machine(request.headers)
        return self.session(request) is not None

    def check_look(self, request: Request) -> None:
        if not self.may_look(request):
            raise HTTPException(401, REFUSED_SIGNED_OUT) if self.needs_key else HTTPException(403, REFUSED_ELSEWHERE)

    def check_change(self, request: Request) -> Session:
        """Raises HTTPException unless somebody who has signed in asks for it, on this very page."""
        if not self.needs_key:
            raise HTTPException(403, REFUSED_READ_ONLY)
        session = self.session(request)
        if session is None:
            raise HTTPException(401, REFUSED_SIGNED_OUT)
        check_origin(request)
        if not hmac.compare_digest(request.headers.get(TOKEN_HEADER, "").encode(), session.token.encode()):
            raise HTTPException(403, REFUSED_OTHER_PAGE)
        return session

    async def sign_in(self, request: Request, response: Response) -> bool:
        """Sets the cookie if the form of the request has a key that is accepted. Raises Closed."""
        check_origin(request)
        user = self._door.user(await _key_of_form(request), request.client.host if request.client else "")
        if user is None:
            return False
        now = time.monotonic()
        self._sessions = {id: session for id, session in self._sessions.items() if session.until > now}
        while len(self._sessions) >= MOST_SESSIONS:
            self._sessions.pop(next(iter(self._sessions)))
        id = secrets.token_urlsafe(32)
        self._sessions[id] = Session(user, secrets.token_urlsafe(32), now + SESSION_SECONDS)
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, id, SESSION_SECONDS, httponly=True, samesite="strict", secure=secure)
        return True

    def sign_out(self, request: Request, response: Response) -> None:
        check_origin(request)
        self._sessions.pop(request.cookies.get(COOKIE, ""), None)
        response.delete_cookie(COOKIE)


REFUSED_ELSEWHERE = "Without keys this dashboard answers to localhost only."
REFUSED_READ_ONLY = "This dashboard is read-only: start it with --key-file to let people cancel."
REFUSED_SIGNED_OUT = "Sign in with a key first."
REFUSED_OTHER_PAGE = "This did not come from the dashboard's own page; reload it."


def check_origin(request: Request) -> None:
    """Refuses what a page of another site sends: browsers name the origin of every POST."""
    if urlsplit(request.headers.get("origin", "")).netloc != request.headers.get("host"):
        raise HTTPException(403, REFUSED_OTHER_PAGE)


async def _key_of_form(request: Request) -> str:
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MOST_FORM_BYTES:
        raise HTTPException(413, "A key is not that long.")
    form = parse_qs((await request.body()).decode("ascii", "replace"))
    return form.get("key", [""])[0].strip()
