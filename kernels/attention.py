"""Attention of packed queries over the extents of a token pool: every row has its own length, mask and place."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import mlx.core as mx


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
class Packing:
    """How the N tokens of a round are packed: spans in packed order, and what each token needs to find its place.

    `positions` [N] int32 are absolute positions; `slots` [N] int32 are where each token's key and value are written.
    """

    spans: tuple[Span, ...]
    positions: mx.array
    slots: mx.array
    _masks: dict[tuple[int, int | None], mx.array | str | None] = field(default_factory=dict)

    @cached_property
    def count(self) -> int:
        """N, the number of packed tokens."""
        return sum(span.count for span in self.spans)

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

    The plain-MLX reference: MLX's own attention, one call a row over a view of its extent.
    """
    outputs = []
    for index, span in enumerate(packing.spans):
        row = queries[span.query : span.query + span.count].transpose(1, 0, 2)[None]  # [1, H, T, D]
        extent = slice(span.extent, span.extent + span.length)
        output = mx.fast.scaled_dot_product_attention(
            row,
            keys[extent].transpose(1, 0, 2)[None],  # [1, KV, L, D]
            values[extent].transpose(1, 0, 2)[None],
            scale=scale,
            mask=packing.mask(index, window),
        )
        outputs.append(output[0].transpose(1, 0, 2).reshape(span.count, -1))
    return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs)
