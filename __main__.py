"""The `draftmill` command, which `python -m draftmill` is, too."""

import atexit
import os
import signal

INTERRUPTED = 130
"""As `producer/queue/errors.py` has it, which is not loaded yet."""


def main() -> None:
    """Loads the command and runs it.

    Whoever stops it by a signal while it is being loaded gets its exit code and no traceback: nothing has begun. An
    exception would not do, for it can strike where Python ignores it. Once the command runs, `heed_signals` takes over;
    once it has ended, its own exit code stands.
    """
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if _is_heeded(number)]
    for number in numbers:
        signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in numbers])
    from .producer.cli.main import main as command

    command()


def _is_heeded(number: signal.Signals) -> bool:
    """False if the caller has it ignored, as nohup has."""
    return signal.getsignal(number) is not signal.SIG_IGN


if __name__ == "__main__":
    main()
