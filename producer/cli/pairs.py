"""The names of pairs, as far as a producer needs them: to offer them, and to notice a mistyped one."""

from __future__ import annotations

from difflib import get_close_matches

KNOWN = (
    "smollm2-135m",
    "qwen3-4b",
    "qwen3-8b",
    "qwen3.5-4b",
    "qwen3.5-9b",
    "qwen3.5-27b",
    "qwen3.5-35b-a3b",
    "qwen3.6-27b",
    "qwen3.6-35b-a3b",
    "qwen3-coder-30b-a3b",
)
"""The names of `engine/models/pairs.py`, which a producer does not import; a test compares them."""


def hint(pair: str) -> str:
    """The end of a sentence about a pair: which known one a name like it may mean; nothing for others."""
    close = [] if pair in KNOWN else get_close_matches(pair, KNOWN, 1)
    return f"; did you mean {close[0]!r}?" if close else ""
