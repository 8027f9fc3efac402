"""The parent of a worker on a Mac. It loads no model: it starts the worker, passes signals on, and outlives it.

While a display is on, macOS ends what keeps the GPU for too long. MLX then aborts the process, or raises an error after
which nothing of its is to be trusted. Either way the worker ends, and no job is to blame. So its parent hands back what
it held, at once and without a lost lease, and starts it again with half the bound on command buffers.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import redis as redis_py

from ...engine.depth.command_buffers import environment
from ...engine.schedule.blame import gave_up
from ...producer.queue import wire
from ...producer.queue.errors import BUG, GPU_GAVE_UP, INTERRUPTED, UserError, redis_trouble
from ...producer.queue.leases import Claimed, JobQueue

log = logging.getLogger("draftmill.worker")

TAIL = 50
"""Lines of what a worker said last that are looked at when it has ended."""

BARREN = 3
"""Lives in a row that end so without a single result. From then on its jobs are to blame: one may be what does it."""

HALVINGS = 4
"""After so many the bound stays as it is."""

T = TypeVar("T")

Command = Callable[[str, int], Sequence[str]]
"""What starts a worker of this name, after so many aborts."""


def bounded(seconds: float, aborts: int) -> float:
    """The bound on command buffers after so many aborts."""
    return seconds / 2 ** min(aborts, HALVINGS)


@dataclass(frozen=True)
class End:
    """How a worker ended: its exit code, negative for a signal, and why the GPU gave up if that is the reason."""

    code: int
    gpu: str | None

    @property
    def exit_code(self) -> int:
        """As shells have it."""
        return self.code if self.code >= 0 else 128 - self.code


class Parent:
    """Runs one worker after another until one ends by itself.

    Args:
        command: what starts a worker.
        host: name of this machine in the fleet.
        connect: a client of the fleet's Redis; raises UserError.
    """

    def __init__(self, command: Command, host: str, connect: Callable[[], redis_py.Redis]) -> None:
        self._command, self._host, self._connect = command, host, connect
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = False
        self.aborts = 0

    def run(self) -> int:
        """Work until a worker ends for another reason than its GPU, or was asked to; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._pass_on)
        barren = 0
        while True:
            name = f"{self._host}-{secrets.token_hex(3)}"
            end = self._live(name)
            if not end.gpu:
                self._explain(end)
                return end.exit_code
            self.aborts += 1
            barren = 0 if self._had_results(name) else barren + 1
            if barren == BARREN:
                log.error("the GPU gave up %d times before there was a result, so what ran counts: %s", barren, end.gpu)
                return BUG
            handed = self._try(lambda redis, name=name: hand_back(redis, name), 0)
            log.warning("the GPU gave up (%s): handed back %d jobs without blame", end.gpu, handed)
            if self._asked:
                return INTERRUPTED
            log.warning("starting again with command buffers half as long, after %d such aborts", self.aborts)

    def _live(self, name: str) -> End:
        """One life of a worker. Its input is a pipe of ours: should we be killed, it hands back its jobs and ends."""
        mlx = {key: value for key, value in environment(self.aborts).items() if key not in os.environ}
        with subprocess.Popen(
            self._command(name, self.aborts),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C comes to us, and from us once to it
            env=os.environ | mlx,
        ) as child:
            self._child = child
            if self._asked:  # while there was no worker
                child.terminate()
            assert child.stderr
            tail = Tail(child.stderr)
            tail.start()
            code = child.wait()
            self._child = None
            tail.join(5)
        return End(code, gave_up(tail.text) if code in (-signal.SIGABRT, GPU_GAVE_UP, BUG) else None)

    def _pass_on(self, number: int, frame: Any) -> None:
        self._asked = True
        if child := self._child:
            child.send_signal(number)

    def _explain(self, end: End) -> None:
        """What an end means that nobody asked for."""
        if end.code == -signal.SIGKILL and not self._asked:
            log.error("the worker was killed, as macOS does where memory is short; its leases run out, others go on")
        elif end.code < 0 and not self._asked:
            log.error("the worker died of %s; its leases run out, others go on", signal.Signals(-end.code).name)

    def _had_results(self, name: str) -> bool:
        fields = self._try(lambda redis: redis.hmget(wire.worker_key(name), "done", "failed"), [])
        return any(int(field or 0) for field in fields)

    def _try(self, ask: Callable[[redis_py.Redis], T], otherwise: T) -> T:
        """Ask Redis; where that cannot be, leases run out by themselves."""
        try:
            with self._connect() as redis:
                return ask(redis)
        except redis_py.RedisError as error:
            log.error("%s; what the worker held waits for the end of its leases", redis_trouble(error))
        except UserError as error:
            log.error("%s; what the worker held waits for the end of its leases", error.message)
        return otherwise


class Tail(threading.Thread):
    """Passes on what a worker says on standard error, and keeps the end of it."""

    def __init__(self, said: IO[bytes]) -> None:
        super().__init__(name="tail", daemon=True)
        self._said = said
        self._lines: deque[bytes] = deque(maxlen=TAIL)

    def run(self) -> None:
        for line in self._said:
            self._lines.append(line)
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()

    @property
    def text(self) -> str:
        return b"".join(self._lines).decode("utf-8", "replace")


def hand_back(redis: redis_py.Redis, name: str) -> int:
    """Return the jobs of a dead worker to the fronts of their queues, without blame, and strike it from the fleet.

    Returns how many jobs there were. Raises RedisError.
    """
    queue = JobQueue(redis, name, "", 0)
    count = queue.release(Claimed(id, b"", token, "", "", 0) for id, token in queue.leases())
    key = f"rq:worker:{name}"
    with redis.pipeline(transaction=True) as pipe:
        pipe.srem("rq:workers", key)
        pipe.delete(key, wire.worker_key(name))
        pipe.zrem(wire.WORKERS, name)
        pipe.execute()
    return count
