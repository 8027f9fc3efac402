"""Gemma 3: sliding layers with a rope of their own, norms before and after attention and MLP, scaled embeddings."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.gemma3_text import clip_residual

from ....kernels.fused.rotary import Layout, Norms
from ..layers import geglu
from .transformer import Pass, Transformer


def plain(norm: Any) -> nn.RMSNorm:
    """The same norm by weights that are not taken to lie around zero."""
    same = nn.RMSNorm(norm.weight.size, norm.eps)
    same.weight = 1.0 + norm.weight
    mx.eval(same.weight)
    return same


class Gemma3(Transformer):
    """Adapter over `mlx_lm.models.gemma3_text`."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.norm = plain(self.norm)
        self.after = [
            (plain(layer.post_attention_layernorm), plain(layer.post_feedforward_layernorm)) for layer in self.layers
        ]

    @cached_property
    def layout(self) -> Layout:
        attn = self.attention_layers[0]
        return Layout(attn.n_heads, attn.n_kv_heads, attn.head_dim, attn.head_dim, epsilon=attn.k_norm.eps)

    def norms(self, attn: Any) -> Norms:
        return plain(attn.q_norm).weight, plain(attn.k_norm).weight

    def norms_before(self, layer: Any) -> tuple[nn.RMSNorm, nn.RMSNorm]:
        return plain(layer.input_layernorm), plain(layer.pre_feedforward_layernorm)

    def window(self, index: int) -> int | None:
        return self.body.window_size if self.layers[index].self_attn.is_sliding else None

    def rope_kind(self, attn: Any) -> bool:
        return attn.is_sliding

    def enter(self, tokens: mx.array) -> mx.array:
        x = self.embed(tokens)
        return x * mx.array(self.hidden_size**0.5, mx.bfloat16).astype(x.dtype)  # rounded, as in training

    def mix(self, index: int, layer: Any, x: mx.array, through: Pass) -> mx.array:
        norm, _ = self.after[index]
        return norm(super().mix(index, layer, x, through))

    def feed(self, index: int, layer: Any, x: mx.array) -> mx.array:
        _, norm = self.after[index]
        return norm(super().feed(index, layer, x))

    def activate(self, gate: mx.array, up: mx.array) -> mx.array:
        return geglu(gate, up)

    def _add_norm(self, x: mx.array, y: mx.array, norm: nn.RMSNorm) -> tuple[mx.array, mx.array]:
        if x.dtype != mx.float16:
            return super()._add_norm(x, y, norm)
        total = clip_residual(x, y)  # which float16 cannot always hold
        return total, norm(total)
