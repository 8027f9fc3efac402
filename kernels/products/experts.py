"""Tokens through the experts that they chose, in one of two orders; the products are MLX's own.

Unsorted, each choice is a product of its own. Sorted by expert, the tokens of one expert lie side by side, so that its
weights may be read once for all of them; the price is two sorts and two gathers.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

Through = Callable[[mx.array, mx.array, bool], mx.array]
"""Takes tokens [..., 1, K], the expert of each [...], and whether these ascend; returns [..., 1, O]."""

MANY = 64
"""Choices from which on mlx-lm sorts them."""


def experts(x: mx.array, chosen: mx.array, through: Through) -> mx.array:
    """Tokens x [N, K] through the experts `chosen` [N, E] as mlx-lm orders them: [N, E, O]."""
    return by_expert(x, chosen, through) if chosen.size >= MANY else as_chosen(x, chosen, through)


def experts_in_other_order(x: mx.array, chosen: mx.array, through: Through) -> mx.array:
    """As `experts`, sorted where mlx-lm does not sort, and unsorted where it does."""
    return as_chosen(x, chosen, through) if chosen.size >= MANY else by_expert(x, chosen, through)


def as_chosen(x: mx.array, chosen: mx.array, through: Through) -> mx.array:
    """As `experts`, unsorted."""
    return through(mx.expand_dims(x, (-2, -3)), chosen, False).squeeze(-2)


def by_expert(x: mx.array, chosen: mx.array, through: Through) -> mx.array:
    """As `experts`, sorted."""
    flat = chosen.flatten()
    order = mx.argsort(flat)
    outputs = through(x[order // chosen.shape[1]][:, None], flat[order], True)  # [N * E, 1, O]
    return outputs[mx.argsort(order)].reshape(*chosen.shape, -1)
