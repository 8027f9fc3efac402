"""What Gemmas share: norms before and after attention and MLP, and scaled embeddings."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..layers import geglu
from .transformer import Pass, Transformer


def plain(norm: Any) -> nn.RMSNorm:
    """The same norm by weights that are not taken to lie around zero."""
    same = nn.RMSNorm(norm.weight.size, norm.eps)
    same.weight = 1.0 + norm.weight
    mx.eval(same.weight)
    return same


class Gemma(Transformer):
    """A forward in which what attention and MLP give is normed before it joins the residual stream."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.after = [
            (plain(layer.post_attention_layernorm), plain(layer.post_feedforward_layernorm)) for layer in self.layers
        ]

    def last_norm(self) -> nn.RMSNorm:
        return plain(self.body.norm)

    def norms_before(self, layer: Any) -> tuple[nn.RMSNorm, nn.RMSNorm]:
        return plain(layer.input_layernorm), plain(layer.pre_feedforward_layernorm)

    def enter(self, tokens: mx.array) -> mx.array:
        return self.embed(tokens) * self.hidden_size**0.5

    def mix(self, index: int, layer: Any, x: mx.array, through: Pass) -> mx.array:
        norm, _ = self.after[index]
        return norm(super().mix(index, layer, x, through))

    def feed(self, index: int, layer: Any, x: mx.array, through: Pass) -> mx.array:
        _, norm = self.after[index]
        return norm(super().feed(index, layer, x, through))

    def activate(self, gate: mx.array, up: mx.array) -> mx.array:
        return geglu(gate, up)
