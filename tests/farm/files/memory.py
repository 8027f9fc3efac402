"""How much memory a process takes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path


def peak_memory(pid: int) -> int:
    """The most that a process has had so far, in bytes, or what it has now where no more is known."""
    status = Path(f"/proc/{pid}/status")
    try:
        if found := re.search(r"VmHWM:\s*(\d+)", status.read_text()):
            return int(found[1]) * 1024
    except FileNotFoundError:
        pass
    now = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return int(now or 0) * 1024
