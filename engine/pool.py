"""The keys and values of all rows: one pool of token slots for each attention layer."""

from __future__ import annotations

import mlx.core as mx

from .extents import Extent


class KVPool:
    """Keys and values [slots, KV, D] of `layers` attention layers.

    Writes are in place as long as nothing else holds the old array when the write is evaluated. So a round is
    evaluated by itself: two rounds in one graph would copy every pool.
    """

    def __init__(self, layers: int, slots: int, heads: int, head_dim: int, dtype: mx.Dtype):
        self.slots = slots
        self.keys = [mx.zeros((slots, heads, head_dim), dtype) for _ in range(layers)]
        self.values = [mx.zeros((slots, heads, head_dim), dtype) for _ in range(layers)]
        mx.eval(self.keys, self.values)

    @staticmethod
    def bytes_per_slot(layers: int, heads: int, head_dim: int, dtype: mx.Dtype) -> int:
        return 2 * layers * heads * head_dim * dtype.size

    def write(self, layer: int, slots: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write keys and values [N, KV, D] at `slots` [N]; returns the layer's whole pools."""
        self.keys[layer][slots] = keys
        self.values[layer][slots] = values
        return self.keys[layer], self.values[layer]

    def move(self, old: Extent, new: Extent, count: int) -> None:
        """Copy the first `count` slots of extent `old` to extent `new`."""
        source = mx.arange(old.start, old.start + count)
        # Gathered and evaluated first: a view would hold the pool and turn the write into a copy of it.
        copies = [pool[source] for pool in self.keys + self.values]
        mx.eval(copies)
        for pool, rows in zip(self.keys + self.values, copies, strict=True):
            pool[new.start : new.start + count] = rows
        mx.eval(self.keys, self.values)
