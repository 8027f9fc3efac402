"""A dataset at a URL: https:// and http:// with Python alone, s3://, gs:// and hf:// through fsspec's packages.

`ask` says what a URL has now, compared with what is held of it, and how the rest comes. Nothing here shows a password.
"""

from __future__ import annotations

import re
import socket
import ssl
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

from ..queue.errors import UserError
from ..queue.urls import SPELLING, is_doubtful

URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
HTTP, STORES = ("https", "http"), ("s3", "gs", "hf")
MISSING = {
    "s3": "there is no such bucket; create it first",
    "gs": "there is no such bucket; create it first",
    "hf": "there is no such dataset; create it first, or set HF_TOKEN if it is private",
}
"""What it means that a file cannot be written because something is not there."""
LOGINS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_ANON=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS_TOKEN=anon for a public bucket",
    "hf": "set HF_TOKEN",
}
"""Where the packages of a store find credentials."""
SIGNED = ("x-amz-", "x-goog-")
"""Parts of a query that sign it for a while: signed anew it is the same URL."""

SECONDS = 60
"""A server that sends nothing for so long is gone."""
READ = 2**18
"""Bytes that are read of a connection at a time, at most."""
RANGE = 2**23
"""Bytes that a store is asked for at a time."""
MARKS = ("ETag", "etag", "blob_id", "generation", "LastModified")
"""What fsspec says of a file that tells its versions apart, the best first."""


@dataclass(frozen=True)
class Held:
    """What is here of a URL: so many bytes of this version, which may be all. Without a version nothing is known."""

    version: str = ""
    size: int = 0
    is_whole: bool = False


@dataclass(frozen=True)
class Answer:
    """What comes: the bytes from `start` on, of `size` (None if nobody knows) in this version (empty: it has none)."""

    version: str
    start: int
    size: int | None
    pieces: Iterator[bytes]


class Cut(Exception):
    """It did not come to its end, for a reason that may pass."""


class Busy(Cut):
    """The server answers that it cannot serve it just now."""


def is_url(source: str) -> bool:
    """Whether it is a URL and not the name of a file."""
    return URL.match(source) is not None


def name_of(url: str) -> str:
    """The URL as it may be shown to everybody: without a login or a query. Raises UserError if it cannot be read."""
    scheme = scheme_of(url)
    if scheme not in HTTP + STORES:
        known = ", ".join(f"{each}://" for each in HTTP + STORES)
        raise UserError(f"draftmill reads no URL of {scheme}:// (only {known}); copy the file here first")
    if scheme in HTTP and is_doubtful(url):
        raise UserError(f"an @ or # stands behind the host of a URL; {SPELLING}, in a path as well")
    if scheme in STORES and re.search("[@:]", url.partition("://")[2].partition("/")[0]):
        raise UserError(f"a URL of {scheme}:// has a login; leave it out and {LOGINS[scheme]}")
    try:
        parts = urlsplit(url)
        if not parts.hostname or (parts.port is None and parts.netloc.endswith(":")):
            raise ValueError
    except ValueError:  # whose text shows what may be a password
        raise UserError(f"the host or the port of a URL of {scheme}:// is wrong") from None
    if scheme in STORES and ("*" in parts.path or "::" in url):
        raise UserError(f"a URL of {scheme}:// names several files; name one")
    query = "?***" if parts.query else ""
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"


def path_of(url: str) -> str:
    """The path in it, whose end tells the format."""
    return urlsplit(url).path


def identity(url: str) -> str:
    """What the URL asks for, however it was signed."""
    before, mark, query = url.partition("?")
    return before + mark + "&".join(part for part in query.split("&") if not part.lower().startswith(SIGNED))


def ask(url: str, held: Held) -> Answer | None:
    """What the URL has now: None if that is held whole, else what of it comes. Raises UserError, or Cut."""
    return _ask_http(url, held) if scheme_of(url) in HTTP else _ask_store(url, held)


def scheme_of(url: str) -> str:
    """What stands before the :// of a URL, in small letters; empty if there is none."""
    found = URL.match(url)
    return found["scheme"].lower() if found else ""


def _ask_http(url: str, held: Held) -> Answer | None:
    """One GET: the server compares versions, and sends a range only of what has not changed."""
    is_date = held.version.endswith("GMT")
    request = _request(url)
    if held.version and held.is_whole:
        request.add_header("If-Modified-Since" if is_date else "If-None-Match", held.version)
    elif held.version and held.size:
        request.add_header("Range", f"bytes={held.size}-")
        request.add_header("If-Range", held.version)
    try:
        with _cuts():
            response: HTTPResponse = urlopen(request, timeout=SECONDS)
    except HTTPError as error:
        error.close()
        if error.code == 304:
            return None
        if error.code == 416 and request.has_header("Range"):
            return _ask_http(url, Held())
        raise _refusal(url, error.code) from None
    version = response.headers["Last-Modified" if is_date else "ETag"] or response.headers["Last-Modified"] or ""
    if held.is_whole and version and version == held.version:
        response.close()
        return None
    start = 0
    if response.status == 206:
        if not request.has_header("Range"):
            response.close()
            raise _refusal(url, 206)
        version = version or held.version
        start = held.size
        if version != held.version or not (response.headers["Content-Range"] or "").startswith(f"bytes {start}-"):
            response.close()
            return _ask_http(url, Held())
    size = None if response.length is None else start + response.length
    return Answer(response.headers["ETag"] or version, start, size, _stream(response))


def _request(url: str) -> Request:
    """A GET of what the URL names, its login as a header that no redirection takes along."""
    before, _, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    place = quote(place.partition("#")[0], safe="/%:=&?~+!$,;'@()*[]-._")
    request = Request(f"{before}://{place}", headers={"Accept-Encoding": "identity", "User-Agent": "draftmill"})
    if at:
        request.add_unredirected_header("Authorization", f"Basic {b64encode(unquote(login).encode()).decode()}")
    return request


def _refusal(url: str, code: int) -> Exception:
    name = name_of(url)
    if code in (404, 410):
        return UserError(f"cannot read {name}: no such file (HTTP {code})")
    if code in (401, 403, 407):
        return UserError(
            f"cannot read {name}: the server refuses it (HTTP {code}); check login or signature, "
            "https://USER:PASSWORD@HOST/…"
        )
    if code >= 500 or code in (408, 425, 429):
        return Busy(f"the server answers HTTP {code}")
    return UserError(f"cannot read {name}: the server answers HTTP {code}")


def _stream(response: HTTPResponse) -> Iterator[bytes]:
    with response, _cuts():
        while piece := response.read1(READ):
            yield piece


@contextmanager
def _cuts() -> Iterator[None]:
    """Says in plain words what happened to a connection."""
    try:
        yield
    except HTTPError:
        raise
    except (OSError, HTTPException) as error:
        raise Cut(_reason(error)) from None


def _reason(error: BaseException) -> str:
    match error:
        case URLError(reason=BaseException() as cause):
            return _reason(cause)
        case ssl.SSLCertVerificationError():
            return "its certificate is not trusted; name the CA in SSL_CERT_FILE"
        case ssl.SSLError():
            return "it does not speak TLS"
        case socket.gaierror():
            return "unknown host name"
        case ConnectionRefusedError():
            return "connection refused"
        case TimeoutError():
            return f"no answer for {SECONDS} s"
        case _:
            return "the connection was cut"


def _ask_store(url: str, held: Held) -> Answer | None:
    """A store says the version first, sends ranges, and is asked for the version again at the end."""
    name = name_of(url)
    store, path = store_of(url)

    def info() -> tuple[str, dict[str, Any]]:
        with store_trouble(url):
            store.invalidate_cache()
            found = store.info(path)
        return version_in(found), found

    version, found = info()
    if found["type"] == "directory":
        raise UserError(f"cannot read {name}: it is a folder; name a file in it")
    size, is_known = found["size"], version != "" and held.version == version
    if is_known and held.is_whole:
        return None
    start = held.size if is_known and held.size <= size else 0

    def pieces() -> Iterator[bytes]:
        for at in range(start, size, RANGE):
            end = min(at + RANGE, size)
            with store_trouble(url):
                piece = store.cat_file(path, start=at, end=end)
            if len(piece) != end - at:
                raise Cut("the connection was cut")
            yield piece
        if info()[0] != version:
            raise Cut("it changed meanwhile")

    return Answer(version, start, size, pieces())


def version_in(found: Mapping[str, Any]) -> str:
    """What tells the version of a file apart, in what fsspec says of it; empty if nothing does."""
    return next((str(found[mark]) for mark in MARKS if found.get(mark)), "")


def store_of(url: str, doing: str = "reading") -> tuple[Any, str]:
    """fsspec's file system for the URL, and the path there."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)
    except ImportError:
        scheme = scheme_of(url)
        packages = "'draftmill[remote]'" + (" gcsfs" if scheme == "gs" else "")
        raise UserError(f"{doing} {scheme}:// needs its packages: pip install {packages}") from None


@contextmanager
def store_trouble(url: str, doing: str = "read") -> Iterator[None]:
    """Says in plain words what a store's package raises; each has exceptions of its own, whose texts may have keys.

    Raises UserError, or Cut for what may pass.
    """
    cannot, scheme = f"cannot {doing} {name_of(url)}", scheme_of(url)
    try:
        yield
    except (UserError, Cut):
        raise
    except Exception as error:
        kind, code = type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, PermissionError) or code in (401, 403) or str(error).startswith("Forbidden"):
            raise UserError(f"{cannot}: it refuses the credentials; {LOGINS[scheme]}") from None
        if isinstance(error, FileNotFoundError) or code == 404:
            raise UserError(f"{cannot}: {'no such file' if doing == 'read' else MISSING[scheme]}") from None
        if "Credential" in kind or "Profile" in kind:
            raise UserError(f"{cannot}: there are no credentials; {LOGINS[scheme]}") from None
        raise Cut("it cannot be reached" if "Connect" in kind else f"its store fails ({kind})") from None
