"""Attention of packed queries by stock MLX: the reference row by row, and padded rows together."""

from __future__ import annotations

import mlx.core as mx

from ..packing import Packing
from ..pages.pool import LayerPool
from .manner import Manner

BLOCK = 64
"""Queries of a causal chunk that attend together on a CPU, where MLX computes hidden scores, too: a block has fewer."""


def attention_by_row(queries: mx.array, pool: LayerPool, packing: Packing, manner: Manner) -> mx.array:
    """The reference: MLX's own attention [N, H * D], one call a row, over a copy of the row's keys and values."""
    return mx.concatenate([_of_span(queries, pool, packing, index, manner) for index in range(len(packing.spans))])


def attention_together(queries: mx.array, pool: LayerPool, packing: Packing, manner: Manner) -> mx.array:
    """All rows in one call, over padded copies."""
    padded = packing.padded
    keys, values = pool.gather(packing.rows, padded.length, packing.kept)
    own, mask = padded.spread(queries).transpose(0, 2, 1, 3), padded.mask(packing, manner.window)[:, None]
    outputs = _attend(own, keys, values, mask, manner)
    return padded.pack(outputs.transpose(0, 2, 1, 3).flatten(2))


def _of_span(queries: mx.array, pool: LayerPool, packing: Packing, index: int, manner: Manner) -> mx.array:
    """Attention [count, H * D] of the span `index`."""
    span = packing.spans[index]
    keys, values = pool.gather(packing.row(index), span.length, packing.kept)
    own = queries[span.query : span.query + span.count].transpose(1, 0, 2)[None]
    mask = packing.mask(index, manner.window)
    if isinstance(mask, str) and span.count > BLOCK and mx.default_device() == mx.cpu:
        output = _in_blocks(own, keys, values, manner)
    else:
        output = _attend(own, keys, values, mask, manner)
    return output[0].transpose(1, 0, 2).reshape(span.count, -1)


def _in_blocks(queries: mx.array, keys: mx.array, values: mx.array, manner: Manner) -> mx.array:
    """Causal attention [1, H, T, D] of the last T tokens, block by block over the keys that any of it sees."""
    count, before = queries.shape[2], keys.shape[2] - queries.shape[2]
    outputs: list[mx.array] = []
    for begin in range(0, count, BLOCK):
        end = min(begin + BLOCK, count)
        own, seen = slice(begin, end), slice(0, before + end)
        outputs.append(_attend(queries[:, :, own], keys[:, :, seen], values[:, :, seen], "causal", manner))
    return mx.concatenate(outputs, axis=2)


def _attend(
    queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None, manner: Manner
) -> mx.array:
    """Attention [R, H, T, D] of queries [R, H, T, D] over keys and values [R, KV, L, D]."""
    scale, sinks, cap = manner.scale, manner.sinks, manner.cap
    if cap is None:
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)
    assert sinks is None, "no model has both"
    (rows, heads, count, dim), (_, kv_heads, length, _) = queries.shape, keys.shape
    grouped = (queries * scale).reshape(rows, kv_heads, heads // kv_heads, count, dim)
    scores = cap * mx.tanh(grouped @ keys[:, :, None].swapaxes(-1, -2) / cap)  # [R, KV, H / KV, T, L]
    if isinstance(mask, str):  # causal: the queries are the last tokens
        mask = mx.arange(length) <= mx.arange(length - count, length)[:, None]
    if mask is not None:
        seen = mask[:, None] if mask.ndim == 4 else mask
        scores = mx.where(seen, scores, mx.finfo(scores.dtype).min)
    return (mx.softmax(scores, axis=-1, precise=True) @ values[:, :, None]).reshape(queries.shape)
