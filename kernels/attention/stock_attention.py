"""Attention of packed queries by stock MLX: the reference row by row, and padded rows together."""

from __future__ import annotations

import mlx.core as mx

from ..packing import Packing
from ..pages.pool import LayerPool


def attention_by_row(
    queries: mx.array, pool: LayerPool, packing: Packing, scale: float, window: int | None = None
) -> mx.array:
    """The reference: MLX's own attention [N, H * D], one call a row, over a copy of the row's keys and values."""
    spans = range(len(packing.spans))
    return mx.concatenate([_of_span(queries, pool, packing, index, scale, window) for index in spans])


def attention_together(
    queries: mx.array, pool: LayerPool, packing: Packing, scale: float, window: int | None = None
) -> mx.array:
    """All rows in one call, over padded copies."""
    padded = packing.padded
    rows, width = padded.queries.shape
    keys, values = pool.gather(packing.rows, padded.length, packing.kept)
    outputs = mx.fast.scaled_dot_product_attention(
        queries[padded.queries].transpose(0, 2, 1, 3),  # [R, H, T, D]
        keys,  # [R, KV, L, D]
        values,
        scale=scale,
        mask=padded.mask(packing, window)[:, None],
    )
    return outputs.transpose(0, 2, 1, 3).reshape(rows * width, -1)[padded.order]


def _of_span(
    queries: mx.array, pool: LayerPool, packing: Packing, index: int, scale: float, window: int | None
) -> mx.array:
    """Attention [count, H * D] of the span `index`."""
    span = packing.spans[index]
    keys, values = pool.gather(packing.row(index), span.length, packing.kept)
    output = mx.fast.scaled_dot_product_attention(
        queries[span.query : span.query + span.count].transpose(1, 0, 2)[None],  # [1, H, T, D]
        keys,  # [1, KV, L, D]
        values,
        scale=scale,
        mask=packing.mask(index, window),
    )
    return output[0].transpose(1, 0, 2).reshape(span.count, -1)
