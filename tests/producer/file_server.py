"""A small web server of files, as honest or as poor as a test wants it."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Files:
    """What the server has by path, how it behaves, and in `asked` the headers of each request.

    Each of `cuts` ends an answer after so many bytes of its body, each of `codes` is one without a body.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    asked: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    cuts: list[int] = field(default_factory=list[int])
    codes: list[int] = field(default_factory=list[int])
    has_ranges: bool = True
    has_versions: bool = True
    has_sizes: bool = True
    login: str = ""

    def put(self, path: str, content: bytes) -> str:
        """Its URL."""
        self.files[path] = content
        return f"{self.url}{path}"

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("range") for headers in self.asked]


@contextmanager
def serving() -> Iterator[Files]:
    """Files on a port of this machine."""
    files = Files()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            files.asked.append(headers)
            content = files.files.get(self.path.partition("?")[0])
            etag = f'"{hashlib.sha256(content or b"").hexdigest()[:16]}"' if files.has_versions else ""
            if files.codes:
                return self._say(files.codes.pop(0))
            if files.login and headers.get("authorization") != files.login:
                return self._say(401)
            if content is None:
                return self._say(404)
            if etag and headers.get("if-none-match") == etag:
                return self._say(304)
            about = {"ETag": etag} if etag else {}
            first = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
            if first and files.has_ranges and headers.get("if-range") == etag:
                start = int(first[1])
                if start >= len(content):
                    return self._say(416)
                about["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                return self._send(206, content[start:], about)
            return self._send(200, content, about)

        def _say(self, code: int) -> None:
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _send(self, code: int, body: bytes, about: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in about.items():
                self.send_header(name, value)
            if files.has_sizes:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: files.cuts.pop(0)] if files.cuts else body)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    files.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
