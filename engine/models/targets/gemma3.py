"""Gemma 3: queries and keys are normed, and layers that slide have a rope of their own."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.gemma3_text import clip_residual

from ....kernels.fused.rotary import Layout, Norms
from .gemma import Gemma, plain


class Gemma3(Gemma):
    """Adapter over `mlx_lm.models.gemma3_text`."""

    @cached_property
    def layout(self) -> Layout:
        attn = self.attention_layers[0]
        return Layout(attn.n_heads, attn.n_kv_heads, attn.head_dim, attn.head_dim, epsilon=attn.k_norm.eps)

    def norms(self, attn: Any) -> Norms:
        return plain(attn.q_norm).weight, plain(attn.k_norm).weight

    def window(self, index: int) -> int | None:
        return self.body.window_size if self.layers[index].self_attn.is_sliding else None

    def rope_kind(self, attn: Any) -> bool:
        return attn.is_sliding

    def enter(self, tokens: mx.array) -> mx.array:
        x = self.embed(tokens)
        return x * mx.array(self.hidden_size**0.5, mx.bfloat16).astype(x.dtype)  # rounded in every type

    def _add_norm(self, x: mx.array, y: mx.array, norm: nn.RMSNorm) -> tuple[mx.array, mx.array]:
        if x.dtype != mx.float16:
            return super()._add_norm(x, y, norm)
        total = clip_residual(x, y)  # which float16 cannot always hold
        return total, norm(total)
