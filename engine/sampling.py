"""Probabilities and random draws: every row with settings and a random stream of its own."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import mlx.core as mx

from .request import Sampling


class Purpose(IntEnum):
    """What a random number is for. Draws for different purposes at one position are independent."""

    SAMPLE = 0
    DRAFT = 1
    ACCEPT = 2


def probabilities(logits: mx.array, samplings: Sequence[Sampling]) -> mx.array:
    """Float32 probabilities [M, vocabulary] after temperature, then top-k, then top-p; rows sum to 1.

    `samplings` has one entry for each row of the logits. Greedy rows are treated as temperature 1.
    """
    temperatures = mx.array([sampling.temperature or 1.0 for sampling in samplings])[:, None]
    p = mx.softmax(logits.astype(mx.float32) / temperatures, axis=-1, precise=True)
    truncated = [m for m, sampling in enumerate(samplings) if sampling.truncated]
    if truncated:  # sorting is dear: only the rows that need it
        rows = mx.array(truncated)
        p[rows] = truncate(p[rows], [samplings[m] for m in truncated])
    return p


def truncate(p: mx.array, samplings: Sequence[Sampling]) -> mx.array:
    """Probabilities [M, vocabulary] cut to the top-k, then to the top-p likeliest tokens; rows sum to 1 again."""
    vocabulary = p.shape[-1]
    top_k = mx.array([sampling.top_k or vocabulary for sampling in samplings])[:, None]
    top_p = mx.array([sampling.top_p for sampling in samplings])[:, None]
    order = mx.argsort(-p, axis=-1)
    ranked = mx.take_along_axis(p, order, axis=-1)
    ranked = mx.where(mx.arange(vocabulary) < top_k, ranked, 0)
    ranked = ranked / ranked.sum(axis=-1, keepdims=True)
    # A token stays while the mass before it is below top_p, so that at least the first one does.
    before = mx.cumsum(ranked, axis=-1) - ranked
    ranked = mx.where(before < top_p, ranked, 0)
    ranked = ranked / ranked.sum(axis=-1, keepdims=True)
    return mx.put_along_axis(mx.zeros_like(p), order, ranked, axis=-1)


def uniform(samplings: Sequence[Sampling], positions: mx.array, purpose: Purpose) -> mx.array:
    """One uniform draw in [0, 1) per row, a function of its seed, its position [M] and the purpose alone.

    Threefry is keyed by (seed, position and purpose), so the streams of neighbours and of positions are independent.
    """
    seeds = mx.array([(s.seed ^ s.seed >> 32) & 0xFFFFFFFF for s in samplings], mx.uint32)
    keys = mx.stack([seeds, (positions * len(Purpose) + int(purpose)).astype(mx.uint32)], axis=-1)  # [M, 2]
    return mx.vmap(lambda key: mx.random.uniform(key=key))(keys)


def draw(p: mx.array, u: mx.array) -> mx.array:
    """Tokens [M] by inversion: the first token whose cumulative weight [M, vocabulary] exceeds u [M] of the total."""
    cumulative = mx.cumsum(p, axis=-1)
    total = cumulative[:, -1:]
    below = (cumulative <= u[:, None] * total).sum(axis=-1)
    # Rounding can bring u * total up to the total: never step past the last token that has any mass.
    return mx.minimum(below, (cumulative < total).sum(axis=-1)).astype(mx.int32)


def greedy(logits: mx.array) -> mx.array:
    """The likeliest token [M] of each row of logits [M, vocabulary]."""
    return mx.argmax(logits, axis=-1).astype(mx.int32)


def all_greedy(samplings: Sequence[Sampling]) -> bool:
    return all(sampling.greedy for sampling in samplings)


def greedy_rows(samplings: Sequence[Sampling]) -> mx.array:
    """Which rows [M] are greedy."""
    return mx.array([sampling.greedy for sampling in samplings])
