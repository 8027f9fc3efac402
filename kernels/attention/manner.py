"""How a layer's attention weighs its keys: the same in every round."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True, eq=False)
class Manner:
    """What scores become weights by.

    Args:
        scale: the factor of scores.
        window: so many keys before its own a query sees; None for all.
        sinks: a score of each head [H] that takes its share of the weights and has no value.
        cap: what no score, without its mask, goes beyond: scores become cap * tanh(score / cap).
    """

    scale: float
    window: int | None = None
    sinks: mx.array | None = None
    cap: float | None = None
