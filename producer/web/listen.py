"""What the servers of the command line share: a socket to listen on, and uvicorn until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import suppress
from types import FrameType
from typing import Never

import uvicorn
from starlette.applications import Starlette

from ..queue.errors import UserError
from .tls import Tls


class Server(uvicorn.Server):
    """Looks whether it is to end when a signal comes, and once a second, for the time in its answers.

    uvicorn's own looks ten times a second.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._signalled = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._signalled.wait(), 1)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self._loop:
            self._loop.call_soon_threadsafe(self._signalled.set)


def listen(host: str, port: int) -> socket.socket:
    """A socket there, on a free port if `port` is 0; raises UserError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0].lower()
        raise UserError(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from error


def url(listener: socket.socket, tls: Tls | None) -> str:
    host, port = listener.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def run(app: Starlette, listener: socket.socket, patience: int, tls: Tls | None) -> None:
    """Serves `app` until a signal; what runs then may go on for `patience` seconds.

    Responses that would never end by themselves can ask `app.state.stopping()`.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=patience,
        ssl_certfile=tls and tls.cert,
        ssl_keyfile=tls and tls.key,
    )
    server = Server(config)
    app.state.stopping = lambda: server.should_exit
    signal.signal(signal.SIGTERM, _stop)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def _stop(*_: object) -> Never:
    raise KeyboardInterrupt
