"""Which tokens top-k and then top-p leave to a draw, in plain MLX and without a sort: the cut is found by bisection.

Both cut a ranking: larger logits come first, and of equal ones those with smaller indices.
"""

from __future__ import annotations

import mlx.core as mx

SIGN = 1 << 31
LOWEST = 0x007FFFFF
"""The key of minus infinity; smaller ones belong to no number."""

KEY_BITS = {mx.float32: 32, mx.float16: 19, mx.bfloat16: 16}
"""The leading bits of a key that tell the numbers of a type apart."""


def top_k(x: mx.array, k: mx.array, bits: int) -> mx.array:
    """Whether each token of logits x [M, V] float32 is among the k [M, 1] int32 that rank first; bool [M, V]."""
    cut = lowest_that_measure(x, mx.array(1.0), k, bits)
    return ranked(x == cut, k - (x > cut).sum(axis=-1, keepdims=True)) | (x > cut)


def top_p(x: mx.array, weights: mx.array, p: mx.array, bits: int) -> mx.array:
    """Whether each token stays: those of logits x [M, V] float32 that rank before it weigh less than the share p [M, 1]
    of all weights [M, V]. So the first one always does. Where p is 1 or more, all stay; bool [M, V].
    """
    target = p * weights.sum(axis=-1, keepdims=True)
    cut = lowest_that_measure(x, weights, target, bits)
    tied = (x == cut) & (weights > 0)
    weight = mx.where(tied, weights, 0).max(axis=-1, keepdims=True)
    above = mx.where(x > cut, weights, 0).sum(axis=-1, keepdims=True)
    stay = mx.maximum(mx.ceil((target - above) / weight), 1)
    return ranked(tied, stay) | (x > cut) | (p >= 1)


def lowest_that_measure(x: mx.array, measure: mx.array, target: mx.array, bits: int) -> mx.array:
    """The largest logit [M, 1] of x [M, V] that, with all that are larger, measures `target` [M, 1] or more.

    The key of a number is built bit by bit, from the highest: keys have the order of their numbers.
    """
    key = mx.zeros((x.shape[0], 1), mx.uint32)
    for bit in range(31, 31 - bits, -1):
        raised = key | (1 << bit)
        measured = mx.where(x >= number(raised), measure, 0).sum(axis=-1, keepdims=True)
        key = mx.where(measured >= target, raised, key)
    return mx.where(x >= number(key), x, mx.inf).min(axis=-1, keepdims=True)


def number(key: mx.array) -> mx.array:
    """The float32 of a key (uint32)."""
    key = mx.maximum(key, LOWEST)
    return mx.where(key >= SIGN, key ^ SIGN, ~key).view(mx.float32)


def ranked(tokens: mx.array, count: mx.array) -> mx.array:
    """The first `count` [M, 1] of these tokens (bool [M, V])."""
    return tokens & (mx.cumsum(tokens.astype(mx.int32), axis=-1) <= count)
