"""Gemma 2: scores and logits are capped."""

from __future__ import annotations

from functools import cached_property

import mlx.core as mx

from ....kernels.fused.rotary import Layout
from .gemma import Gemma


class Gemma2(Gemma):
    """Adapter over `mlx_lm.models.gemma2`, in which every layer sees everything."""

    @cached_property
    def layout(self) -> Layout:
        attn, neighbours = self.attention_layers[0], self.model.args.rope_traditional
        return Layout(attn.n_heads, attn.n_kv_heads, attn.head_dim, attn.head_dim, neighbours=neighbours)

    @property
    def cap(self) -> float:
        return self.model.args.attn_logit_softcapping

    def head(self, hidden: mx.array) -> mx.array:
        cap = self.model.args.final_logit_softcapping
        return mx.tanh(super().head(hidden) / cap) * cap
