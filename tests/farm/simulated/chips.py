"""How fast the chips of a simulated farm are, beside each other."""

from __future__ import annotations

TOKENS_PER_SECOND = {
    "M1": 14.15,
    "M2": 21.91,
    "M3": 21.34,
    "M4": 24.11,
    "M1 Pro": 36.41,
    "M2 Pro": 38.86,
    "M3 Pro": 30.74,
    "M4 Pro": 50.74,
    "M1 Max": 61.19,
    "M2 Max": 65.95,
    "M3 Max": 66.31,
    "M4 Max": 83.06,
}
"""Of one text at a time, Llama 2 7B in Q4_0 by llama.cpp, each chip with all its GPU cores, as its users measured it:
https://github.com/ggml-org/llama.cpp/discussions/4167. That draftmill's speeds relate as these do is a projection.
"""


def fleet(workers: int) -> list[float]:
    """Tokens a second of each of so many workers: all chips in turns."""
    speeds = list(TOKENS_PER_SECOND.values())
    return [speeds[number % len(speeds)] for number in range(workers)]
