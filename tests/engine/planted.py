"""Faults to plant in a sound engine, as bugs of a backend or of a kernel would cause them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx

from draftmill.engine.models.targets.transformer import Transformer
from draftmill.kernels.operations import Operations
from draftmill.kernels.packing import Packing

Turns = Callable[[mx.array], mx.array]


def one_place(target: Transformer) -> Turns:
    """Rotations of which one token's wins for all tokens of a round, as they were on CUDA."""
    sound = target.turns
    return lambda positions: mx.repeat(sound(positions)[-1:], positions.size, axis=0)


def ahead(target: Transformer, least: int = 4) -> Turns:
    """Rotations that are one position too far for tokens from position `least` on."""
    sound = target.turns
    return lambda positions: sound(mx.where(positions >= least, positions + 1, positions))


@dataclass(frozen=True)
class ShiftedMask(Operations):
    """Attention in which each token sees `by` keys too many, or too few."""

    by: int = 1

    def attention(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        packing: Packing,
        scale: float,
        window: int | None = None,
    ) -> mx.array:
        spans = tuple(replace(span, exact=False) for span in packing.spans)
        shifted = Packing(spans, packing.positions, packing.slots, limits=mx.maximum(packing.seen + self.by, 0))
        return super().attention(queries, keys, values, shifted, scale, window)
