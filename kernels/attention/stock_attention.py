"""Attention of packed queries by stock MLX: the reference row by row, and padded rows together."""

from __future__ import annotations

import mlx.core as mx

from ..packing import Packing


def attention_by_row(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    packing: Packing,
    scale: float,
    window: int | None = None,
) -> mx.array:
    """The plain-MLX reference: MLX's own attention, one call a row over a view of its extent."""
    spans = range(len(packing.spans))
    return mx.concatenate([_of_span(queries, keys, values, packing, index, scale, window) for index in spans])


def attention_together(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    packing: Packing,
    scale: float,
    window: int | None = None,
) -> mx.array:
    """All rows in one call, over padded copies of their extents."""
    padded = packing.padded
    rows, width = padded.queries.shape
    outputs = mx.fast.scaled_dot_product_attention(
        queries[padded.queries].transpose(0, 2, 1, 3),  # [R, H, T, D]
        keys[padded.keys].transpose(0, 2, 1, 3),  # [R, KV, L, D]
        values[padded.keys].transpose(0, 2, 1, 3),
        scale=scale,
        mask=padded.mask(packing, window)[:, None],
    )
    return outputs.transpose(0, 2, 1, 3).reshape(rows * width, -1)[padded.order]


def _of_span(
    queries: mx.array, keys: mx.array, values: mx.array, packing: Packing, index: int, scale: float, window: int | None
) -> mx.array:
    """Attention [count, H * D] of the span `index` over its extent."""
    span = packing.spans[index]
    extent = slice(span.extent, span.extent + span.length)
    output = mx.fast.scaled_dot_product_attention(
        queries[span.query : span.query + span.count].transpose(1, 0, 2)[None],  # [1, H, T, D]
        keys[extent].transpose(1, 0, 2)[None],  # [1, KV, L, D]
        values[extent].transpose(1, 0, 2)[None],
        scale=scale,
        mask=packing.mask(index, window),
    )
    return output[0].transpose(1, 0, 2).reshape(span.count, -1)
