"""How large a page is. Knows no MLX."""

from __future__ import annotations

PAGE = 64
"""Token slots of a page. A kernel that reads 32 keys at a time finds them side by side."""


def pages_for(tokens: int) -> int:
    """How many pages so many tokens of a row take."""
    return -(-tokens // PAGE)
