"""`draftmill` with a worker of set speed in place of a real one, and with a fault; run as `command FAULT WORDS…`.

The faults: `none`; `loses`, `doubles` and `fails` spoil what `collect` has written; `blind` workers take over nothing.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from draftmill.producer.cli.main import main
from draftmill.producer.queue.connect import resolve
from draftmill.producer.queue.errors import FAILED_ITEMS
from tests.worker.run_worker import Settings, run


def work(words: list[str], fault: str) -> bool:
    """Works for the pair that is named. The second worker of a folder is the one that should take over."""
    home = Path(os.environ["DRAFTMILL_HOME"])
    if (first := home / "first").exists() and fault == "blind":
        time.sleep(0.5)
        sys.exit("it sees no work")
    first.touch()
    pair = words[words.index("--pair") + 1]
    return run(Settings(resolve(None), str(home / "spool"), rows=8, round_seconds=0.05, lease=3, pair=pair))


def collect(words: list[str], fault: str) -> None:
    """Collects, then spoils the file."""
    main(words, standalone_mode=False)
    out = Path(words[words.index("-o") + 1])
    lines = out.read_text().splitlines(keepends=True)
    changed = {"loses": lines[1:], "doubles": [*lines, lines[0]]}.get(fault, lines)
    out.write_text("".join(changed))
    sys.exit(FAILED_ITEMS if fault == "fails" else 0)


if __name__ == "__main__":
    fault, *words = sys.argv[1:]
    if words[0] == "worker":
        work(words, fault)
    elif words[0] == "collect":
        collect(words, fault)
    else:
        main(words)
