"""The keys and values of all rows: one pool of pages for each attention layer."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ...kernels.operations import Operations
from ...kernels.pages.pool import LayerPool
from ...kernels.pages.sizes import PAGE

Heads = tuple[int, int]
"""How many, and their dimensions."""


class KVPool:
    """Keys and values of attention layers, which all have the same pages.

    Args:
        heads: of each layer how many heads of keys it has, and their dimensions.
    """

    def __init__(self, heads: Sequence[Heads], pages: int, dtype: mx.Dtype, operations: Operations):
        self.layers = [operations.pool(pages, count, dim, dtype) for count, dim in heads]

    def renew(self, pages: int | None = None) -> None:
        """Begin with empty pages, so many or as many as before; also after a round that failed: what it was to write
        cannot be read.
        """
        for layer in self.layers:
            layer.renew(pages)

    @staticmethod
    def bytes_per_page(heads: Sequence[Heads], dtype: mx.Dtype) -> int:
        return 2 * PAGE * dtype.size * sum(count * dim for count, dim in heads)

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
