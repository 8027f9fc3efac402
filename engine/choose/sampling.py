"""How a row chooses its tokens: greedily, or by draws from a random stream of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import mlx.core as mx

from ...kernels.choose.choose import Setting
from ...kernels.operations import Operations
from ..request import Sampling

STOCK_OPERATIONS = Operations()

SHARPEST = 1e30
"""The inverse of a temperature is at most this, so that it is finite in float32."""


def choose(
    logits: mx.array, samplings: Sequence[Sampling], positions: mx.array, operations: Operations = STOCK_OPERATIONS
) -> mx.array:
    """The token [M] that each row of logits [M, vocabulary] chooses for its absolute position [M].

    A greedy row takes the likeliest. A sampled one draws, with random numbers that depend on its seed and the position
    alone: so whoever asks again, or with logits that differ little, gets the same token, or most likely the same.
    """
    settings: list[Setting] = []
    for _, slots in groupby(samplings, id):  # those of a row share its sampling
        own = list(slots)
        settings += [setting(own[0])] * len(own)
    return operations.choose(logits, settings, positions)


def setting(sampling: Sampling) -> Setting:
    """The numbers of a sampling."""
    if sampling.greedy:
        return Setting()
    seed = (sampling.seed ^ sampling.seed >> 32) & 0xFFFFFFFF
    return Setting(min(1 / sampling.temperature, SHARPEST), sampling.top_p, sampling.top_k, seed, sampling.min_p)
