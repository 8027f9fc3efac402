"""The keys and values of all rows: one pool of pages for each attention layer."""

from __future__ import annotations

import mlx.core as mx

from ...kernels.operations import Operations
from ...kernels.pages.pool import LayerPool
from ...kernels.pages.sizes import PAGE


class KVPool:
    """Keys and values of `layers` attention layers, which all have the same pages."""

    def __init__(self, layers: int, pages: int, heads: int, dim: int, dtype: mx.Dtype, operations: Operations):
        self.layers = [operations.pool(pages, heads, dim, dtype) for _ in range(layers)]

    def renew(self) -> None:
        """Begin with empty pages; also after a round that failed: what it was to write cannot be read."""
        for layer in self.layers:
            layer.renew()

    @staticmethod
    def bytes_per_page(layers: int, heads: int, dim: int, dtype: mx.Dtype) -> int:
        return 2 * layers * PAGE * heads * dim * dtype.size

    def __getitem__(self, layer: int) -> LayerPool:
        return self.layers[layer]

    @property
    def pages(self) -> int:
        return self.layers[0].pages

    @property
    def written(self) -> list[mx.array]:
        """What to evaluate so that all writes launched so far are done."""
        return [layer.written for layer in self.layers]

    def grow(self, pages: int) -> None:
        """Make room for so many pages, layer by layer, once everything launched has run."""
        for layer in self.layers:
            layer.grow(pages)
            mx.clear_cache()  # else the memory of the smaller pools stays, of which nothing else is made
