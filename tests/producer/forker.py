"""Runs commands in forks of a process that has imported them: importing takes longer than most commands do.

A fork is a process with its own pipes, folder, environment and exit, and it runs the package as `python -m draftmill`
does. What a test starts and then signals is started anew instead, for loading is a part of that.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LONGEST_INPUT = 8192
"""Characters that fit in a pipe before anybody reads them."""


def can_fork(environment: Mapping[str, str], stdin: str) -> bool:
    """Whether a fork is as good: nothing else is asked of Python and of what it loads than of this process."""

    def of_python(names: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in names.items() if name.startswith(("PYTHON", "LC_", "LANG", "LD_"))}

    return len(stdin) <= LONGEST_INPUT and of_python(environment) == of_python(os.environ)


def run(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], stdin: str, seconds: float
) -> subprocess.CompletedProcess[str]:
    """Runs `draftmill` with these arguments; raises TimeoutExpired after so many seconds."""
    (reads, writes), stdout, stderr, status = (os.pipe() for _ in range(4))
    theirs = [reads, stdout[1], stderr[1], status[1]]
    request = json.dumps([list(arguments), str(folder), dict(environment)]).encode()
    parent = _parent()
    with parent.lock:
        socket.send_fds(parent.connection, [len(request).to_bytes(4, "big")], theirs)
        parent.connection.sendall(request)
    for each in theirs:
        os.close(each)
    with suppress(BrokenPipeError), open(writes, "w") as file:  # not every command reads its input
        file.write(stdin)
    out, err, code = _read((stdout[0], stderr[0], status[0]), arguments, seconds)
    return subprocess.CompletedProcess(arguments, int(code), out, err)


def _read(pipes: Sequence[int], arguments: Sequence[str], seconds: float) -> list[str]:
    """What comes out of the pipes until all are closed at their other ends."""
    deadline = time.monotonic() + seconds
    parts: dict[int, list[bytes]] = {pipe: [] for pipe in pipes}
    with selectors.DefaultSelector() as open_ones:
        for pipe in pipes:
            open_ones.register(pipe, selectors.EVENT_READ)
        while open_ones.get_map():
            ready = open_ones.select(max(deadline - time.monotonic(), 0))
            if not ready:
                raise subprocess.TimeoutExpired(arguments, seconds)
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                parts[key.fd].append(part)
                if not part:
                    open_ones.unregister(key.fd)
                    os.close(key.fd)
    return [b"".join(parts[pipe]).decode().replace("\r\n", "\n").replace("\r", "\n") for pipe in pipes]


class Parent(NamedTuple):
    """The process that is forked; it ends when the connection does. Who writes to it holds the lock."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    lock: threading.Lock


@cache
def _parent() -> Parent:
    """One for all tests of this process."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        null = subprocess.DEVNULL  # as unlike a terminal as the pipes of its forks
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=null, stdout=null)
    return Parent(process, ours, threading.Lock())


def serve(connection: socket.socket) -> bool:
    """Forks for each request; returns in the forks, true, and at the end, false."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        head, pipes, _, _ = socket.recv_fds(connection, 4, 4)
        if not head:
            return False
        request = json.loads(connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
        if os.fork() == 0:
            connection.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            keep(pipes)
            become(*request)
            return True
        for pipe in pipes:
            os.close(pipe)


def keep(pipes: Sequence[int]) -> None:
    """Forks again: the fork returns, with the pipes as its streams; its parent waits and tells how it ended."""
    *streams, status = pipes
    child = os.fork()
    for number, stream in enumerate(streams):
        if not child:
            os.dup2(stream, number)
        os.close(stream)
    if child:
        os.write(status, str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
        os._exit(0)
    os.close(status)


def become(arguments: Sequence[str], folder: str, environment: Mapping[str, str]) -> None:
    """Makes this process look as if it had been started so."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder
    sys.argv[1:] = arguments
    sys.orig_argv = [sys.executable, "-m", "draftmill", *arguments]


if __name__ == "__main__":
    import_module("draftmill.producer.cli.main")
    gc.freeze()  # so that collections in the forks do not copy its pages
    if serve(socket.socket(fileno=int(sys.argv[1]))):
        runpy.run_module("draftmill", run_name="__main__", alter_sys=True)
