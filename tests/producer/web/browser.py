"""Headless Chromium, driven through a pipe in its own protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import base64
import itertools
import os
import select
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""Debian's, or whatever is there; None if nothing is."""

DESK, PHONE = (1280, 900), (390, 844)
"""Pixels of a window; the second is narrow, dense and touched."""


class Page:
    """One tab. `requests` has the URL of everything that it asked for, `problems` what its console complained of."""

    def __init__(self, out: int, into: int) -> None:
        self._out, self._into = out, into
        self._rest = b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._loaded = ""
        self.requests: deque[str] = deque()
        self.problems: deque[str] = deque()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.send("Page.setLifecycleEventsEnabled", enabled=True)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, orjson.dumps(message) + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self._note(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._into], [], [], 30)
            assert ready, "the browser does not answer"
            data = os.read(self._into, 2**20)
            assert data, "the browser has ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return orjson.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        match event:
            case {"method": "Page.lifecycleEvent", "params": {"name": "load", "loaderId": loader}}:
                self._loaded = loader
            case {"method": "Network.requestWillBeSent", "params": {"request": {"url": url}}}:
                self.requests.append(url)
            case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
                self.problems.append(str(details))
            case {"method": "Log.entryAdded", "params": {"entry": entry}} if entry["level"] == "error":
                self.problems.append(entry["text"])

    def open(self, url: str, size: tuple[int, int] = DESK, dark: bool = False) -> None:
        phone = size == PHONE
        width, height = size
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        loader = self.send("Page.navigate", url=url)["loaderId"]
        while self._loaded != loader:
            self._note(self._read())

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 10) -> float:
        """Waits until an expression holds, and returns how many seconds that took."""
        begin = time.monotonic()
        expression = f"(() => {{ try {{ return {expression} }} catch {{ return false }} }})()"  # a page that loads
        while not self.js(expression):
            assert time.monotonic() < begin + seconds, (expression, self.text)
            time.sleep(0.05)
        return time.monotonic() - begin

    @property
    def text(self) -> str:
        return self.js("document.body.innerText")

    def click(self, selector: str) -> None:
        """Presses the mouse in the middle of an element, as a user would, once it has been painted."""
        self.js("new Promise(then => requestAnimationFrame(() => requestAnimationFrame(() => then(true))))")
        x, y = self.js(
            f"(() => {{ const e = document.querySelector({orjson.dumps(selector).decode()});"
            " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a browser of its own, whose data lie in `folder`."""
    assert PROGRAM
    command = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()
    shell = f'exec "$0" "$@" 3<&{read_commands} 4>&{write_answers}'  # the ends that the browser uses have these numbers
    process = subprocess.Popen(
        ["bash", "-c", shell, PROGRAM, *command],
        pass_fds=(read_commands, write_answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_commands)
    os.close(write_answers)
    try:
        yield Page(write_commands, read_answers)
    finally:
        process.terminate()
        process.wait(10)
        os.close(write_commands)
        os.close(read_answers)
