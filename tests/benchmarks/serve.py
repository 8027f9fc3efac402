"""How fast `draftmill serve` is, and how much memory it takes: a batch of OpenAI's full size, then many calls at once.

    python -m tests.benchmarks.serve

The server, the worker and Redis are real processes; the engine costs nothing. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import openai

from tests.producer.conftest import Shell
from tests.producer.web.serving import (
    ENDED,
    MESSAGES,
    PAIR,
    Server,
    counts,
    create,
    jsonl,
    lines,
    request,
    wait,
    worker,
)
from tests.redis_server import RedisServer, fresh_server

LINES, CALLS = 50_000, 200
PADDING = "x" * 3500
"""Makes a file of 183 MB."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, fresh_server() as redis_server:
        server = Server(Shell(Path(folder), Path(folder) / "home"), redis_server.url)
        server.start()
        with worker(redis_server.url, redis_server.folder / "spool", rows=64, round_seconds=0.0):
            batch(server, redis_server)
            asyncio.run(calls(server))
        server.stop()


def batch(server: Server, redis_server: RedisServer) -> None:
    client = server.client()
    content = jsonl(*(request(f"r-{n}", tokens=1, prompt=f"say {n} {PADDING}") for n in range(LINES)))
    began = time.monotonic()
    made = create(client, content)
    print(f"uploaded {len(content) / 1e6:.0f} MB in {time.monotonic() - began:.1f} s")
    began, most = time.monotonic(), 0
    wait(client, made.id, lambda batch: batch.status != "validating", seconds=60)
    print(f"validated {LINES:,} lines in {time.monotonic() - began:.1f} s")
    with redis_server.connect() as redis:
        while (ended := client.batches.retrieve(made.id)).status not in ENDED:
            memory: Any = redis.info("memory")
            most = max(most, memory["used_memory"])
            time.sleep(0.5)
    print(f"{ended.status} {counts(ended)} after {time.monotonic() - began:.1f} s")
    print(f"memory at most: server {peak(server.process.pid):.0f} MB, Redis {most / 1e6:.0f} MB")
    assert len(lines(client, ended.output_file_id)) == LINES


async def calls(server: Server) -> None:
    async with openai.AsyncOpenAI(api_key="none", base_url=server.base) as client:
        began = time.monotonic()
        call = client.chat.completions.create
        await asyncio.gather(*(call(model=PAIR, messages=MESSAGES, max_tokens=5) for _ in range(CALLS)))
        print(f"{CALLS} calls at once answered in {time.monotonic() - began:.1f} s")


def peak(process: int) -> float:
    """The most memory that a process has had, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1e3


if __name__ == "__main__":
    main()
