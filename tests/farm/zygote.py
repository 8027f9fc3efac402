"""Forks workers that are ready at once: reads `Settings` as JSON lines, answers with the process id of each.

Importing takes a second and a worker does nothing before that a fork would break, so the fault suite can afford
hundreds of workers. Their logs go to this process's standard error.
"""

from __future__ import annotations

import os
import signal
import sys

import orjson

from tests.worker.run_worker import Settings, run


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            answers = os.open(os.devnull, os.O_WRONLY)
            os.dup2(answers, 1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = 1
            try:
                code = 0 if run(Settings(**orjson.loads(line))) else 130
            finally:
                os._exit(code)
        print(child, flush=True)


if __name__ == "__main__":
    main()
