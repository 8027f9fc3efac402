"""From logits to tokens: greedy and sampled rows side by side, every row with a random stream of its own."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from .request import Sampling


def choose(logits: mx.array, samplings: Sequence[Sampling], positions: mx.array) -> mx.array:
    """The next token [M] of every row, from logits [M, vocabulary].

    `positions` [M] are the positions that the chosen tokens will have: with the seed they name the random draw.
    """
    greedy = mx.argmax(logits, axis=-1).astype(mx.int32)
    if all(sampling.greedy for sampling in samplings):
        return greedy
    seeds = mx.array([(s.seed ^ s.seed >> 32) & 0xFFFFFFFF for s in samplings], mx.uint32)
    drawn = draw(probabilities(logits, samplings), uniform(seeds, positions))
    is_greedy = mx.array([sampling.greedy for sampling in samplings])
    return mx.where(is_greedy, greedy, drawn)


def probabilities(logits: mx.array, samplings: Sequence[Sampling]) -> mx.array:
    """Float32 probabilities [M, vocabulary] after temperature, then top-k, then top-p; rows sum to 1."""
    temperatures = mx.array([sampling.temperature or 1.0 for sampling in samplings])[:, None]
    p = mx.softmax(logits.astype(mx.float32) / temperatures, axis=-1, precise=True)
    if all(sampling.top_k == 0 and sampling.top_p == 1 for sampling in samplings):
        return p
    vocabulary = logits.shape[-1]
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


def uniform(seeds: mx.array, positions: mx.array) -> mx.array:
    """One uniform draw in [0, 1) per row, a function of the row's seed [M] and position [M] alone.

    Threefry is keyed by (seed, position), so streams of neighbours and of other positions are independent.
    """
    keys = mx.stack([seeds, positions.astype(mx.uint32)], axis=-1)  # [M, 2]
    return mx.vmap(lambda key: mx.random.uniform(key=key))(keys)


def draw(p: mx.array, u: mx.array) -> mx.array:
    """Tokens [M] by inversion: the first token whose cumulative probability [M, vocabulary] exceeds u [M]."""
    cumulative = mx.cumsum(p, axis=-1)
    total = cumulative[:, -1:]
    below = (cumulative <= u[:, None] * total).sum(axis=-1)
    # Rounding can bring u * total up to the total: never step past the last token that has any mass.
    return mx.minimum(below, (cumulative < total).sum(axis=-1)).astype(mx.int32)
