"""Qwen3-Next (Qwen3-Coder-Next among them): Qwen3.5's layers, whose projections are ordered by heads of keys."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ....kernels.products.low_rank import Chosen
from .qwen3_5 import Qwen35


class Qwen3Next(Qwen35):
    """Adapter over `mlx_lm.models.qwen3_next`."""

    def projections(self, layer: Any) -> list[nn.Module]:
        if not layer.is_linear:
            return super().projections(layer)
        return [layer.linear_attn.in_proj_qkvz, layer.linear_attn.in_proj_ba]

    def project(self, index: int, x: mx.array, chosen: Chosen | None) -> mx.array:
        return super().project(index, x, chosen)[:, self._order]

    @cached_property
    def _order(self) -> mx.array:
        """Where Qwen3.5's outputs lie among those of one token [width].

        Of each head of keys: its queries, its keys, its values and their gates; then its values' b, and a.
        """
        heads = self.recurrent_shape.heads
        share = heads.values // heads.keys
        places = mx.arange(heads.width)
        wide = places[: -2 * heads.values].reshape(heads.keys, -1)
        narrow = places[-2 * heads.values :].reshape(heads.keys, -1)
        ends = heads.key_dim, 2 * heads.key_dim, 2 * heads.key_dim + share * heads.value_dim
        parts = [*mx.split(wide, ends, axis=-1), *mx.split(narrow, 2, axis=-1)]
        return mx.concatenate([part.flatten() for part in parts])
