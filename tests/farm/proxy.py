"""A TCP front for a server on a Unix socket: it speaks TLS if asked, and can go dead without closing anything."""

from __future__ import annotations

import asyncio
import ssl
import threading
from pathlib import Path


class Proxy:
    """Listens on 127.0.0.1 in a thread of its own. `dead`: open connections stay open and carry nothing."""

    def __init__(self, target: Path, context: ssl.SSLContext | None = None) -> None:
        self.target = target
        self.context = context
        self.port = 0
        self.dead = False
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._writers: list[asyncio.StreamWriter] = []
        threading.Thread(target=self._run, daemon=True).start()
        self._ready.wait()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop)

    async def _stop(self) -> None:
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0.1)
        self._loop.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back_reader, back_writer = await asyncio.open_unix_connection(str(self.target))
        except OSError:
            writer.close()
            return
        self._writers += [writer, back_writer]
        await asyncio.gather(self._pump(reader, back_writer), self._pump(back_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if not self.dead:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        writer.close()
