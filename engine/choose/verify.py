"""Verification: how many drafted tokens of each row the target accepts, and its own token after them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import mlx.core as mx

from ...kernels.operations import Operations
from ..request import Sampling
from .change import Slot, choose_changed
from .sampling import STOCK_OPERATIONS


def accept(
    logits: mx.array,
    drafts: mx.array | None,
    depths: list[int],
    samplings: Sequence[Sampling],
    positions: mx.array,
    operations: Operations = STOCK_OPERATIONS,
    slots: Sequence[Slot] = (),
) -> tuple[mx.array, mx.array]:
    """The tokens that each row emits this round: accepted drafts, then the bonus.

    The target chooses its own token for every slot, greedily or by a draw that depends on nothing but the row's seed
    and the token's position, and drafts are accepted as long as they are that token. So what a row emits is what the
    target would have emitted without a draft, whatever is drafted and however deep. The draft draws with the same
    random numbers, so the two agree nearly as often as their distributions do (a Gumbel coupling: Daliri, Musco and
    Suresh 2024). The rejections of Leviathan et al. 2023 accept some more, but what they emit depends on where each
    block begins, and so on a row's neighbours.

    Args:
        logits: [S, vocabulary] of the slots to verify, depth + 1 of each row, row after row.
        drafts: drafted tokens [F], depth of each row, row after row; None if all depths are 0.
        depths: drafted tokens of each of the M rows.
        samplings: of each row.
        positions: [M] int32, position that a row's first emitted token will have.
        operations: that choose.
        slots: [S] what changes the logits; none if nothing does.

    Returns:
        tokens [M, W], W = 1 + the largest depth, of which counts [M] (accepted + 1) are valid.
    """
    if drafts is None:
        chosen = choose_changed(logits, samplings, positions, slots, None, operations)
        return chosen[:, None], mx.ones(len(depths), mx.int32)
    ends = list(accumulate(depth + 1 for depth in depths))
    owners = mx.array([m for m, depth in enumerate(depths) for _ in range(depth + 1)])
    ahead = mx.array([j for depth in depths for j in range(depth + 1)])
    spread = [sampling for sampling, depth in zip(samplings, depths, strict=True) for _ in range(depth + 1)]
    chosen = choose_changed(logits, spread, positions[owners] + ahead, slots, drafts, operations)

    # As [M, W]: slots past a row's depth repeat its last one, drafts past it are masked out.
    most = max(depths)
    rows = list(zip(ends, accumulate(depths), depths, strict=True))
    tokens = chosen[mx.array([[*range(end - 1 - depth, end), *[end - 1] * (most - depth)] for end, _, depth in rows])]
    places = mx.array([[*range(end - depth, end), *[0] * (most - depth)] for _, end, depth in rows])
    within = mx.arange(most) < mx.array(depths)[:, None]
    return tokens, 1 + leading((tokens[:, :-1] == drafts[places]) & within)


def leading(matches: mx.array) -> mx.array:
    """How many entries from the left are true, for each row of matches [M, D]."""
    return mx.cumprod(matches.astype(mx.int32), axis=-1).sum(axis=-1).astype(mx.int32)
