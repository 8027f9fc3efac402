"""Verification: how many drafted tokens of each row the target accepts, and its own token after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import mlx.core as mx

from .request import Sampling
from .sampling import Purpose, all_greedy, draw, greedy, greedy_rows, probabilities, uniform


@dataclass(frozen=True)
class Drafted:
    """The drafted tokens of a round, packed row after row: `tokens` [F], and `q` [F, vocabulary] if any row samples."""

    tokens: mx.array
    q: mx.array | None = None


def accept(
    logits: mx.array,
    drafted: Drafted | None,
    depths: list[int],
    samplings: Sequence[Sampling],
    positions: mx.array,
) -> tuple[mx.array, mx.array]:
    """The tokens that each row emits this round: accepted drafts, then the bonus.

    Greedy rows accept drafts as long as they are the target's own choice. Sampled rows accept a draft x with
    probability min(1, p(x) / q(x)), p being the target's distribution and q the draft's, and draw the first token that
    is not accepted from the normalised positive part of p - q, which makes the output distributed as p (speculative
    sampling; Leviathan et al. 2023, Chen et al. 2023).

    Args:
        logits: [S, vocabulary] of the slots to verify, depth + 1 of each row, row after row.
        drafted: drafted tokens, depth of each row, row after row; None if all depths are 0.
        depths: drafted tokens of each of the M rows.
        samplings: of each row.
        positions: [M] int32, position that a row's first emitted token will have.

    Returns:
        tokens [M, W], W = 1 + the largest depth, of which counts [M] (accepted + 1) are valid.
    """
    width = max(depths) + 1
    starts = list(accumulate(depths, initial=0))[:-1]  # each row's first draft; its first slot is that + m
    slots = mx.array(
        [
            [start + m + min(j, depth) for j in range(width)]
            for m, (start, depth) in enumerate(zip(starts, depths, strict=True))
        ]
    )
    chosen = greedy(logits)
    if drafted is None:
        if all_greedy(samplings):
            tokens = chosen
        else:
            sampled = draw(probabilities(logits, samplings), uniform(samplings, positions, Purpose.SAMPLE))
            tokens = mx.where(greedy_rows(samplings), chosen, sampled)
        return tokens[:, None], mx.ones(len(depths), mx.int32)

    # Drafts as [M, W - 1], those past a row's depth masked out.
    total = sum(depths)
    places = mx.array([[min(start + j, total - 1) for j in range(width - 1)] for start in starts])
    within = mx.arange(width - 1) < mx.array(depths)[:, None]
    drafts = drafted.tokens[places]

    matches = (chosen[slots[:, :-1]] == drafts) & within
    accepted = leading(matches)
    bonus = mx.take_along_axis(chosen[slots], accepted[:, None], axis=1)[:, 0]

    if drafted.q is not None:
        spread = [sampling for sampling, depth in zip(samplings, depths, strict=True) for _ in range(depth + 1)]
        p = probabilities(logits, spread)  # [S, vocabulary]
        p_x, q_x = p[slots[:, :-1], drafts], drafted.q[places, drafts]
        at = (positions[:, None] + mx.arange(width - 1)).flatten()
        owners = [sampling for sampling in samplings for _ in range(width - 1)]
        u = uniform(owners, at, Purpose.ACCEPT).reshape(len(depths), -1)
        passed = leading((u * q_x < p_x) & within)
        last = mx.take_along_axis(slots, passed[:, None], axis=1)[:, 0]
        place = mx.take_along_axis(places, mx.minimum(passed, width - 2)[:, None], axis=1)[:, 0]
        rejected = passed < mx.array(depths)
        residual = mx.maximum(p[last] - mx.where(rejected[:, None], drafted.q[place], 0), 0)
        # Where rounding alone rejected a draft, p and q are the same and nothing is left.
        residual = mx.where(residual.sum(axis=-1, keepdims=True) > 0, residual, p[last])
        sampled = draw(residual, uniform(samplings, positions + passed, Purpose.SAMPLE))
        is_greedy = greedy_rows(samplings)
        accepted = mx.where(is_greedy, accepted, passed)
        bonus = mx.where(is_greedy, bonus, sampled)

    padded = mx.concatenate([drafts, bonus[:, None]], axis=1)
    tokens = mx.where(mx.arange(width) < accepted[:, None], padded, bonus[:, None])
    return tokens, accepted + 1


def leading(matches: mx.array) -> mx.array:
    """How many entries from the left are true, for each row of matches [M, D]."""
    return mx.cumprod(matches.astype(mx.int32), axis=-1).sum(axis=-1).astype(mx.int32)
