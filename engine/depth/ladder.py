"""The few numbers of tokens that rounds without prompts may have. Knows no MLX.

A device computes in tiles, so 9 tokens take what 16 take, and on CUDA MLX plans each number of tokens anew.
"""

from __future__ import annotations

from functools import lru_cache

STEPS = ((8, 1), (64, 8), (128, 16))
"""Up to so many tokens, the distance from one rung to the next."""

LONGEST = 32
"""The distance beyond."""


def rung(tokens: int) -> int:
    """The least number of the ladder that is no less."""
    step = next((step for end, step in STEPS if tokens <= end), LONGEST)
    return -(-tokens // step) * step


@lru_cache(4096)
def rungs(first: int, last: int) -> tuple[int, ...]:
    """The rungs from the one for `first` tokens to the one for `last`."""
    found = [rung(first)]
    while found[-1] < last:
        found.append(rung(found[-1] + 1))
    return tuple(found)
