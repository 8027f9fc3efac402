"""Tells somebody that a batch has ended: a URL gets a signed POST, a command gets the same text on standard input.

Only who submits, collects or serves tells, never a worker: what is called comes from that one's own command line, and
nothing that lies in Redis is ever called.

A POST is signed as OpenAI's webhooks are (the "Standard Webhooks" form): `webhook-signature` is the base64 of the
HMAC-SHA256 of `<webhook-id>.<webhook-timestamp>.<body>`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import shlex
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from ..input.remote import is_url
from ..queue.errors import AGAIN, UserError, explain_file

SECRET = "DRAFTMILL_NOTIFY_SECRET"
"""Environment variable of the secret."""
PREFIX = "whsec_"
"""Stands before a secret that is base64, as OpenAI gives them out."""
POST_SECONDS, COMMAND_SECONDS = 10.0, 300.0
"""How long a receiver, or a command, may take."""
STDERR = 2
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between tries."""

Status = Literal["completed", "failed", "expired", "cancelled"]


@dataclass(frozen=True)
class Event:
    """A batch has ended. `about` says more of it; the same id comes again if it is told again."""

    batch: str
    status: Status
    about: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def id(self) -> str:
        """The same for the same end of the same batch."""
        named = orjson.dumps([self.batch, self.status, self.about], option=orjson.OPT_SORT_KEYS)
        return f"evt_{hashlib.sha256(named).hexdigest()[:32]}"

    def body(self, now: int) -> bytes:
        """What is told at a time: an event as OpenAI has it, and `draftmill` with the rest."""
        return orjson.dumps(
            {
                "id": self.id,
                "object": "event",
                "created_at": now,
                "type": f"batch.{self.status}",
                "data": {"id": self.batch},
                "draftmill": self.about,
            }
        )


class Untold(Exception):
    """The receiver could not be told, and why. `passes` says that trying again may help."""

    def __init__(self, reason: str, passes: bool = True) -> None:
        super().__init__(reason)
        self.passes = passes


@dataclass(frozen=True)
class Hook:
    """Whom to tell: a `target` that is a URL, with the secret that signs, or a command with its arguments."""

    target: str
    secret: bytes = field(default=b"", repr=False)

    @staticmethod
    def of(target: str, secret_file: Path | None) -> Hook:
        """What an option names; the secret is in a file or in the environment. Raises UserError for what can tell
        nobody, before any work is done.
        """
        if is_url(target):
            _check_url(target)
            return Hook(target, _key(_secret(secret_file)))
        if secret_file:
            raise UserError("a command is not signed: leave out --notify-secret, or name a URL with --notify")
        _check_command(target)
        return Hook(target)

    def tell(self, event: Event) -> None:
        """Tells it once; raises Untold."""
        now = int(time.time())
        if self.secret:
            self._post(event.id, event.body(now), now)
        else:
            self._call(event.body(now))

    def tell_patiently(self, event: Event, sleep: Callable[[float], object] = time.sleep) -> None:
        """Tells it, again and again for a minute; raises UserError if that was in vain."""
        for pause in (*PAUSES, None):
            try:
                return self.tell(event)
            except Untold as untold:
                if pause is None or not untold.passes:
                    raise UserError(f"cannot notify {self.name}: {untold}; mend it and {AGAIN}") from None
                sleep(pause)

    @property
    def name(self) -> str:
        """The target without what may be secret in it: a URL's path and query, a command's arguments."""
        if not self.secret:
            return shlex.split(self.target)[0]
        url = urlsplit(self.target)
        return f"{url.scheme}://{url.netloc}"

    def _post(self, id: str, body: bytes, now: int) -> None:
        signed = hmac.new(self.secret, f"{id}.{now}.".encode() + body, hashlib.sha256).digest()
        headers = {
            "content-type": "application/json",
            "user-agent": "draftmill",
            "webhook-id": id,
            "webhook-timestamp": str(now),
            "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
        }
        request = urllib.request.Request(self.target, body, headers, method="POST")
        try:
            with OPENER.open(request, timeout=POST_SECONDS):
                pass
        except urllib.error.HTTPError as error:
            error.close()
            passes = error.code >= 500 or error.code in (408, 425, 429)
            raise Untold(f"it answered {error.code}", passes) from None
        except urllib.error.URLError as error:
            raise Untold(str(error.reason)) from None
        except (OSError, HTTPException) as error:
            raise Untold(str(error) or type(error).__name__) from None

    def _call(self, body: bytes) -> None:
        words = shlex.split(self.target)
        try:
            # What it prints must not stand between what we print for scripts.
            with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=STDERR, process_group=0) as command:
                try:
                    command.communicate(body, COMMAND_SECONDS)
                except BaseException:
                    os.killpg(command.pid, signal.SIGKILL)  # and what it has started
                    raise
        except OSError as error:
            raise Untold((error.strerror or str(error)).lower(), passes=False) from None
        except subprocess.TimeoutExpired:
            raise Untold(f"it took longer than {COMMAND_SECONDS:g} s", passes=False) from None
        if command.returncode:
            raise Untold(f"it ended with exit code {command.returncode}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A POST that is sent elsewhere would arrive there as a GET, without its body."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


OPENER = urllib.request.build_opener(_NoRedirect)


def _check_url(target: str) -> None:
    """Raises UserError for a URL that nothing can be posted to; the message shows neither its path nor its query."""
    try:
        url = urlsplit(target)
        host, _ = url.hostname, url.port
        (host or "").encode("idna")
    except ValueError:  # whose text shows what may be a password
        raise UserError("--notify is a URL whose host or port is wrong") from None
    if url.scheme not in ("http", "https"):
        raise UserError(f"--notify is a URL of {url.scheme}://; name one of https://, or a command")
    if not host:
        raise UserError("--notify is a URL without a host")
    if url.username is not None:
        raise UserError(f"--notify is a URL with a user name for {host}; leave that out: what is sent is signed")
    if not all("!" <= each <= "~" for each in target):
        raise UserError(f"--notify is a URL of {host} with spaces or letters that are not ASCII; write them as %20")


def _check_command(target: str) -> None:
    """Raises UserError for a command that cannot be called."""
    try:
        words = shlex.split(target)
    except ValueError as error:
        raise UserError(f"--notify {target!r} is no command: {str(error).lower()}") from None
    if not words:
        raise UserError("--notify is empty; name a URL or a command")
    if not shutil.which(words[0]):
        raise UserError(f"--notify: there is no command {words[0]!r} that may be run; name another one, or a URL")


def _secret(file: Path | None) -> str:
    if file is None:
        secret = os.environ.get(SECRET, "").strip()
        if not secret:
            raise UserError(f"--notify to a URL is signed: name a file with --notify-secret, or set {SECRET}")
        return secret
    try:
        secret = file.read_text("utf-8").strip()
    except OSError as error:
        raise UserError(explain_file(error, "cannot read", file)) from error
    if not secret:
        raise UserError(f"{str(file)!r} is empty; write the secret into it")
    return secret


def _key(secret: str) -> bytes:
    """The bytes that sign."""
    if not secret.startswith(PREFIX):
        return secret.encode()
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise UserError(f"the secret begins with {PREFIX}, and no base64 follows; copy it again")
    return key
