"""Probabilities and random draws: every row with settings and a random stream of its own."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..request import Sampling


def choose(logits: mx.array, samplings: Sequence[Sampling], positions: mx.array) -> mx.array:
    """The token [M] that each row of logits [M, vocabulary] chooses for its absolute position [M].

    A greedy row takes the likeliest. A sampled one draws, with random numbers that depend on its seed and the position
    alone: so whoever asks again, or with logits that differ little, gets the same token, or most likely the same.
    """
    tokens = mx.argmax(logits, axis=-1).astype(mx.int32)
    sampled = [m for m, sampling in enumerate(samplings) if not sampling.greedy]
    if not sampled:
        return tokens
    rows, settings = mx.array(sampled), [samplings[m] for m in sampled]
    tokens[rows] = draw(probabilities(logits[rows], settings), settings, positions[rows])
    return tokens


def draw(p: mx.array, samplings: Sequence[Sampling], positions: mx.array) -> mx.array:
    """Tokens [M] distributed as p [M, vocabulary]: the likeliest after Gumbel noise of each row's own.

    Threefry is keyed by (seed, position), so the streams of neighbours and of positions are independent.
    """
    seeds = mx.array([(s.seed ^ s.seed >> 32) & 0xFFFFFFFF for s in samplings], mx.uint32)
    keys = mx.stack([seeds, positions.astype(mx.uint32)], axis=-1)  # [M, 2]
    noise = mx.vmap(lambda key: mx.random.gumbel(p.shape[1:], key=key))(keys)
    return mx.argmax(mx.where(p > 0, mx.log(p) + noise, -mx.inf), axis=-1).astype(mx.int32)


def probabilities(logits: mx.array, samplings: Sequence[Sampling]) -> mx.array:
    """Float32 probabilities [M, vocabulary] after temperature, then top-k, then top-p; rows sum to 1.

    `samplings` has one entry for each row of the logits, none of them greedy.
    """
    temperatures = mx.array([sampling.temperature for sampling in samplings])[:, None]
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
