"""LFM2, dense and MoE: most layers are a short convolution between two gates, some attend."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ....kernels.fused.rotary import Layout, Norms
from ...state.short_convolutions import ConvolutionLayers, ShortConvolutions
from ..linear import Chosen, apply
from .hybrid import Hybrid


class Lfm2(Hybrid):
    """Adapter over `mlx_lm.models.lfm2` and `lfm2_moe`."""

    @cached_property
    def layout(self) -> Layout:
        attn = self.attention_layers[0]
        return Layout(attn.n_heads, attn.n_kv_heads, attn.head_dim, attn.head_dim, epsilon=attn.k_layernorm.eps)

    @property
    def convolutions(self) -> ConvolutionLayers:
        return ConvolutionLayers(self.recurrent_layers, self.hidden_size, self.model.args.conv_L_cache, self.dtype)

    def bytes_per_row(self, block: int) -> int:
        return self.convolutions.bytes_per_row(block)

    def make_memory(self) -> ShortConvolutions:
        return ShortConvolutions(self.convolutions)

    def recurs(self, layer: Any) -> bool:
        return not layer.is_attention_layer

    def last_norm(self) -> nn.RMSNorm:
        return self.body.embedding_norm

    def norms_before(self, layer: Any) -> tuple[nn.RMSNorm, nn.RMSNorm]:
        return layer.operator_norm, layer.ffn_norm

    def norms(self, attn: Any) -> Norms:
        return attn.q_layernorm.weight, attn.k_layernorm.weight

    def projections(self, layer: Any) -> list[nn.Module]:
        return [layer.conv.in_proj] if self.recurs(layer) else super().projections(layer)

    def output(self, layer: Any) -> nn.Module:
        return layer.conv.out_proj if self.recurs(layer) else layer.self_attn.out_proj

    def mlp(self, layer: Any) -> Any:
        return layer.feed_forward

    def recur(
        self, index: int, place: int, layer: Any, x: mx.array, memory: ShortConvolutions, chosen: Chosen | None
    ) -> mx.array:
        projected = apply(self.joint[index], x, self.operations, chosen)
        enters, leaves, values = mx.split(projected, 3, axis=-1)
        conv = layer.conv.conv
        mixed = memory.convolve(place, enters * values, conv.weight[..., 0])
        mixed = mixed + conv.bias if "bias" in conv else mixed
        return apply(self.outputs[index], leaves * mixed, self.operations, chosen)
