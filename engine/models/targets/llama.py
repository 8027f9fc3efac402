"""Llama and what shares its shape (SmolLM2, Mistral-like configurations of type `llama`)."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from ....kernels.fused.rotary import Layout
from .transformer import Transformer


class Llama(Transformer):
    """Adapter over `mlx_lm.models.llama`, sliding layers included."""

    @cached_property
    def layout(self) -> Layout:
        attn = self.layers[0].self_attn
        neighbours = self.model.args.rope_traditional
        return Layout(attn.n_heads, attn.n_kv_heads, attn.head_dim, attn.head_dim, neighbours=neighbours)

    def window(self, layer: Any) -> int | None:
        return self.body.sliding_window if layer.use_sliding else None
