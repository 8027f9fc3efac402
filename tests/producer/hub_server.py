"""As much of Hugging Face's hub as datasets are read and written by: its HTTP API, with Git LFS for Parquet files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_s3cr3t"
REPO = "ann/answers"
API = rf"/api/datasets/{REPO}"


@dataclass
class Hub:
    """The dataset REPO, which only those may write who have the TOKEN. Each commit is what it wrote and removed."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    commits: list[tuple[list[str], list[str]]] = field(default_factory=list[tuple[list[str], list[str]]])
    large: dict[str, bytes] = field(default_factory=dict[str, bytes])

    @property
    def environment(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}

    def entry(self, path: str) -> dict[str, Any]:
        content = self.files[path]
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"type": "file", "path": path, "size": len(content), "oid": git}

    def commit(self, lines: list[bytes]) -> None:
        written: list[str] = []
        removed: list[str] = []
        for operation in map(json.loads, lines):
            value = operation["value"]
            match operation["key"]:
                case "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                    written.append(value["path"])
                case "lfsFile":
                    self.files[value["path"]] = self.large[value["oid"]]
                    written.append(value["path"])
                case "deletedFile":
                    del self.files[value["path"]]
                    removed.append(value["path"])
                case _:
                    pass
        self.commits.append((written, removed))


@contextmanager
def serving_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if re.fullmatch(rf"{API}(/revision/main)?", path):
                return self._say({"id": REPO, "sha": "0" * 40, "private": False, "tags": [], "siblings": []})
            if found := re.fullmatch(rf"{API}/tree/main/?(.*)", path):
                folder = f"{found[1]}/" if found[1] else ""
                there = [hub.entry(path) for path in hub.files if re.fullmatch(rf"{re.escape(folder)}[^/]+", path)]
                return self._say(there) if there or not folder else self._refuse(404, "EntryNotFound")
            if found := re.fullmatch(rf"/datasets/{REPO}/resolve/main/(.*)", path):
                return self._send(hub.files[found[1]])
            return self._refuse(404, "RepoNotFound")

        def do_POST(self) -> None:
            is_chunked = self.headers.get("Transfer-Encoding") == "chunked"
            body = b"".join(self._chunks()) if is_chunked else self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._refuse(401, "")
            answers: dict[str, Callable[[], Any]] = {
                f"{API}/preupload/main": lambda: self._modes(json.loads(body)),
                f"/datasets/{REPO}.git/info/lfs/objects/batch": lambda: self._uploads(json.loads(body)),
                f"{API}/commit/main": lambda: self._commit(body),
            }
            answer = answers.get(self.path)
            return self._say(answer()) if answer else self._refuse(404, "RepoNotFound")

        def do_PUT(self) -> None:
            hub.large[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
            self._say({})

        def _modes(self, asked: dict[str, Any]) -> Any:
            paths = [each["path"] for each in asked["files"]]
            modes = {path: "lfs" if path.endswith(".parquet") else "regular" for path in paths}
            return {"files": [{"path": path, "uploadMode": modes[path], "shouldIgnore": False} for path in paths]}

        def _uploads(self, asked: dict[str, Any]) -> Any:
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}} for each in asked["objects"]
            ]
            return {"transfer": "basic", "objects": objects}

        def _commit(self, body: bytes) -> Any:
            hub.commit(body.splitlines())
            return {"commitUrl": f"{hub.url}/datasets/{REPO}/commit/{'1' * 40}", "commitOid": "1" * 40}

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def _send(self, content: bytes) -> None:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")).groups()  # pyright: ignore
            self._answer(206, content[int(first) : int(last) + 1])

        def _say(self, answer: Any) -> None:
            self._answer(200, json.dumps(answer).encode())

        def _refuse(self, code: int, reason: str) -> None:
            self._answer(code, b"{}", {"X-Error-Code": reason} if reason else {})

        def _answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
                self.send_header(name, value)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
