"""Attention of packed queries over the extents of a token pool: every row has its own length, mask and place."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import mlx.core as mx

SHORT = 32
"""Spans of at most so many queries can be padded to one width and go together."""

PAD_KEYS = 128
"""Padded extents are a multiple of so many keys, so that few shapes occur: each new one costs a GPU its plan."""


@dataclass(frozen=True)
class Span:
    """One row's share of a round: `count` packed queries from `query` on, over the extent that starts at slot `extent`.

    `length` is the host's upper bound of the row's keys after this round. It is `exact` when the queries are known
    to be the row's last `count` tokens; otherwise positions, which live on the device, decide what is visible.
    """

    query: int
    count: int
    extent: int
    length: int
    exact: bool = True


@dataclass(frozen=True)
class Padded:
    """Short spans as a rectangle: packed indices of `queries` [R, T], pool slots of `keys` [R, L].

    `order` [N] finds each packed token in the rectangle's outputs followed by those of the long spans.
    """

    queries: mx.array
    keys: mx.array
    order: mx.array
    _masks: dict[int | None, mx.array] = field(default_factory=dict)

    def mask(self, positions: mx.array, window: int | None) -> mx.array:
        """What each query sees [R, T, L]."""
        if window not in self._masks:
            at = positions[self.queries][..., None]
            keys = mx.arange(self.keys.shape[1])
            visible = keys <= at
            self._masks[window] = visible if window is None else visible & (at - keys < window)
        return self._masks[window]


@dataclass(frozen=True)
class Packing:
    """How the N tokens of a round are packed: spans in packed order, and what each token needs to find its place.

    `positions` [N] int32 are absolute positions; `slots` [N] int32 are where each token's key and value are written.
    """

    spans: tuple[Span, ...]
    positions: mx.array
    slots: mx.array
    _masks: dict[tuple[int, int | None], mx.array | str | None] = field(default_factory=dict)

    @cached_property
    def short(self) -> dict[int, int]:
        """Spans with few queries: index of the span -> its place among them."""
        indices = [index for index, span in enumerate(self.spans) if span.count <= SHORT]
        return {index: place for place, index in enumerate(indices)}

    @cached_property
    def padded(self) -> Padded:
        """The short spans, padded to one rectangle."""
        spans = [self.spans[index] for index in self.short]
        width = max(span.count for span in spans)
        length = -(-max(span.length for span in spans) // PAD_KEYS) * PAD_KEYS
        queries = mx.array([[span.query + min(t, span.count - 1) for t in range(width)] for span in spans])
        starts = mx.array([[span.extent] for span in spans])
        lengths = mx.array([[span.length] for span in spans])
        keys = starts + mx.minimum(mx.arange(length), lengths - 1)
        order: list[int] = []
        end = len(spans) * width  # long spans follow the rectangle
        for index, span in enumerate(self.spans):
            first = self.short[index] * width if index in self.short else end
            order.extend(range(first, first + span.count))
            end += 0 if index in self.short else span.count
        return Padded(queries, keys, mx.array(order))

    def mask(self, index: int, window: int | None) -> mx.array | str | None:
        """The mask of span `index` over its extent: [count, length] boolean, "causal", or None where all is visible.

        A key at position j is visible to a query at position i when j <= i and, in a sliding layer, i - j < window.
        """
        key = (index, window)
        if key not in self._masks:
            self._masks[key] = self._build_mask(self.spans[index], window)
        return self._masks[key]

    def _build_mask(self, span: Span, window: int | None) -> mx.array | str | None:
        if span.exact and (window is None or span.length <= window):
            return None if span.count == 1 else "causal"
        queries = self.positions[span.query : span.query + span.count, None]
        keys = mx.arange(span.length)[None]
        visible = keys <= queries
        return visible if window is None else visible & (queries - keys < window)


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
    return mx.concatenate([_row(queries, keys, values, packing, index, scale, window) for index in spans])


def attention_together(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    packing: Packing,
    scale: float,
    window: int | None = None,
) -> mx.array:
    """All rows with few queries in one call, over padded copies of their extents; long ones (prefill) row by row."""
    padded = packing.padded
    rows, width = padded.queries.shape
    outputs = mx.fast.scaled_dot_product_attention(
        queries[padded.queries].transpose(0, 2, 1, 3),  # [R, H, T, D]
        keys[padded.keys].transpose(0, 2, 1, 3),  # [R, KV, L, D]
        values[padded.keys].transpose(0, 2, 1, 3),
        scale=scale,
        mask=padded.mask(packing.positions, window)[:, None],
    )
    flat = outputs.transpose(0, 2, 1, 3).reshape(rows * width, -1)
    spans = range(len(packing.spans))
    long = [_row(queries, keys, values, packing, i, scale, window) for i in spans if i not in packing.short]
    return mx.concatenate([flat, *long])[padded.order]


def _row(
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
