"""Prints the answers in a results file, as an example of how to read one: `python show.py results.jsonl`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
    result = json.loads(line)
    if error := result["error"]:
        answer = f"failed: {error['message']}"
    else:
        choice = result["response"]["body"]["choices"][0]
        answer = choice["message"]["content"] if "message" in choice else choice["text"]
    print(f"--- {result['custom_id']}\n{answer.strip()}")
