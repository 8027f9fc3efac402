"""Llama and what mlx-lm runs as one (SmolLM2, Mistral, XVERSE, IQuest-Coder)."""

from __future__ import annotations

from functools import cached_property

from ....kernels.fused.rotary import Layout
from .transformer import Transformer


class Llama(Transformer):
    """Adapter over `mlx_lm.models.llama`, sliding layers included."""

    @cached_property
    def layout(self) -> Layout:
        attn = self.layers[0].self_attn
        neighbours = self.model.args.rope_traditional
        return Layout(attn.n_heads, attn.n_kv_heads, attn.head_dim, attn.head_dim, neighbours=neighbours)

    def window(self, index: int) -> int | None:
        return self.body.sliding_window if self.layers[index].use_sliding else None
