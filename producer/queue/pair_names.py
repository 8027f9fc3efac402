"""The names of pairs, as producers and workers need them: one form of each, those to offer, and mistyped ones."""

from __future__ import annotations

import shlex
from collections import Counter
from difflib import get_close_matches

KNOWN = (
    "smollm2-135m",
    "qwen3-4b",
    "qwen3-8b",
    "qwen3.5-4b",
    "qwen3.5-9b",
    "qwen3.5-27b",
    "qwen3.5-35b-a3b",
    "qwen3.5-122b-a10b",
    "qwen3.5-397b-a17b",
    "qwen3.6-27b",
    "qwen3.6-35b-a3b",
    "qwen3.8-27b",
    "qwen3-coder-30b-a3b",
    "qwen3-coder-next",
    "gemma-4-12b",
    "gemma-4-26b-a4b",
    "gemma-4-31b",
    "gpt-oss-20b",
    "gpt-oss-120b",
    "lfm2.5-1.2b",
    "lfm2.5-2.6b",
    "lfm2.5-8b-a1b",
    "llama-3.1-8b",
)
"""The names of `engine/models/pairs.py`, which a producer does not import; a test compares them."""


def canonical(pair: str) -> str:
    """The one form of a pair's name, by which its jobs and its workers find each other: `Qwen3-4B` is `qwen3-4b`.

    Folders and hub ids keep their case: two folders may differ in nothing else.
    """
    lower = pair.lower()
    return lower if lower in KNOWN else pair.rstrip("/") or pair


def hint(pair: str) -> str:
    """The end of a sentence about a pair: which known ones a name like it may mean; nothing for others."""
    if pair in KNOWN:
        return ""
    near = get_close_matches(pair.lower(), KNOWN, len(KNOWN))
    jumbled = [name for name in near if not Counter(pair.lower()) - Counter(name)]  # has every character of `pair`
    meant = " or ".join(repr(name) for name in jumbled or near[:3])
    return f"; did you mean {meant}?" if meant else ""


def unserved(pair: str) -> str:
    """What to do where nobody works on a pair."""
    return f"no live worker serves {pair}; start one with: draftmill worker --pair {shlex.quote(pair)}{hint(pair)}"
