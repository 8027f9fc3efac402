"""How a command is told to stop: SIGTERM and SIGHUP do what Ctrl-C does."""

from __future__ import annotations

import signal
from typing import Never


def heed_signals() -> None:
    """From now on SIGTERM and SIGHUP raise KeyboardInterrupt, unless they are ignored (as under nohup)."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)


def _interrupt(*_: object) -> Never:
    raise KeyboardInterrupt
