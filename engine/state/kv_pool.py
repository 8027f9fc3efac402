"""The keys and values of all rows: one pool of token slots for each attention layer."""

from __future__ import annotations

import mlx.core as mx

from ..schedule.extents import Extent


class KVPool:
    """Keys and values [slots, KV, D] of `layers` attention layers.

    Writes are in place as long as nothing else holds the old array when the write is evaluated. So a round is
    evaluated by itself: two rounds in one graph would copy every pool.
    """

    def __init__(self, layers: int, slots: int, heads: int, head_dim: int, dtype: mx.Dtype):
        self.slots = slots
        self._layers, self._shape, self._dtype = layers, (slots, heads, head_dim), dtype
        self._put: list[list[tuple[mx.array, mx.array, mx.array]]] = [[] for _ in range(layers)]
        self.renew()

    def renew(self) -> None:
        """Begin with empty slots; also after a round that failed: what it was to write cannot be read."""
        self.discard()
        self.keys: list[mx.array] = []  # gives the old ones back before new ones take their memory
        self.values: list[mx.array] = []
        self.keys = [mx.zeros(self._shape, self._dtype) for _ in range(self._layers)]
        self.values = [mx.zeros(self._shape, self._dtype) for _ in range(self._layers)]
        mx.eval(self.keys, self.values)

    @staticmethod
    def bytes_per_slot(layers: int, heads: int, head_dim: int, dtype: mx.Dtype) -> int:
        return 2 * layers * heads * head_dim * dtype.size

    def write(self, layer: int, slots: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write keys and values [N, KV, D] at `slots` [N], and what was `put`; returns the layer's whole pools."""
        if self._put[layer]:
            parts = [(slots, keys, values), *self._put[layer]]
            slots, keys, values = (mx.concatenate([*part]) for part in zip(*parts, strict=True))
            self._put[layer].clear()
        self.keys[layer][slots] = keys
        self.values[layer][slots] = values
        return self.keys[layer], self.values[layer]

    def copy(self, start: int, count: int) -> tuple[list[mx.array], list[mx.array]]:
        """Copies of `count` slots from `start` on, of every layer; to be evaluated before the next write."""
        source = mx.arange(start, start + count)
        return [keys[source] for keys in self.keys], [values[source] for values in self.values]

    def put(self, start: int, keys: list[mx.array], values: list[mx.array]) -> None:
        """Write the keys and values [n, KV, D] of every layer from slot `start` on, along with what comes next.

        So each pool is written once a round, by when what the round before reads of it has long been read.
        """
        slots = mx.arange(start, start + keys[0].shape[0])
        for waiting, k, v in zip(self._put, keys, values, strict=True):
            waiting.append((slots, k, v))

    def settle(self) -> None:
        """Write what was `put` now."""
        for layer, waiting in enumerate(self._put):
            if waiting:
                self.write(layer, *waiting.pop())

    def discard(self) -> None:
        """Forget what was `put` and is not yet written."""
        for waiting in self._put:
            waiting.clear()

    def move(self, old: Extent, new: Extent, count: int) -> None:
        """Copy the first `count` slots of extent `old` to extent `new`."""
        source = mx.arange(old.start, old.start + count)
        # Gathered and evaluated first: a view would hold the pool and turn the write into a copy of it.
        copies = [pool[source] for pool in self.keys + self.values]
        mx.eval(copies)
        for pool, rows in zip(self.keys + self.values, copies, strict=True):
            pool[new.start : new.start + count] = rows
        mx.eval(self.keys, self.values)
