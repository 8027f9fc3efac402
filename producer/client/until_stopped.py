"""Runs what works until it is told to stop: at the first signal it is told so, at the second the command ends."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

Answer = TypeVar("Answer")


def until_stopped(work: Callable[[], Answer], stop: Callable[[], object]) -> Answer:
    """What `work` returns, in a thread of its own; a KeyboardInterrupt here, as signals raise it, calls `stop`.

    A signal's handler must not set an event that its own thread waits for: where it interrupts that wait, it would wait
    for ever, for a lock that this thread holds.
    """
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:  # it is the command's, whatever it is
            answer.set_exception(error)

    working = Thread(target=run, daemon=True)
    try:
        working.start()
        return answer.result()
    except KeyboardInterrupt:
        stop()
        if not (working.is_alive() or answer.done()):  # the signal came before it had begun
            raise
        return answer.result()
