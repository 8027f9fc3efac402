"""A part of the self-test: `python -m draftmill.engine.selftest PIPE NAME FOLDER SIZES`, with sizes as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .checks import Sizes, parts
from .parts import tell

if __name__ == "__main__":
    pipe, name, folder, sizes = sys.argv[1:]
    tell(parts(Path(folder), Sizes(**json.loads(sizes)))[name], int(pipe))
