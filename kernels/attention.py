"""Attention of packed queries over the extents of a token pool: every row has its own length, mask and place."""

from __future__ import annotations

import mlx.core as mx

from .packing import Packing
from .stock_attention import attention_by_row, attention_together


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    packing: Packing,
    scale: float,
    window: int | None = None,
) -> mx.array:
    """Attention of packed queries [N, H, D] over pools [slots, KV, D]; returns [N, H * D].

    On a GPU, where launches cost more than copies, rows with few queries go together; elsewhere row by row.
    """
    together = mx.default_device() != mx.cpu and len(packing.short) > 1
    return (attention_together if together else attention_by_row)(queries, keys, values, packing, scale, window)
