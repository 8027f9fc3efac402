"""LFM2, dense and MoE: most layers are a short convolution between two gates, some attend."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ....kernels.fused.rotary import Layout, Norms
from ....kernels.products.low_rank import Chosen
from ....kernels.race.contestants import OperationShape
from ...state.short_convolutions import ConvolutionLayers, ShortConvolutions
from ..linear import apply
from .hybrid import Hybrid


class Lfm2(Hybrid):
    """Adapter over `mlx_lm.models.lfm2` and `lfm2_moe`."""

    @cached_property
    def layout(self) -> Layout:
        attn = self.attention_layers[0]
        return Layout(attn.n_heads, attn.n_kv_heads, attn.head_dim, attn.head_dim, epsilon=attn.k_layernorm.eps)

    @property
    def convolutions(self) -> ConvolutionLayers:
        return ConvolutionLayers(self.hidden_size, self.model.args.conv_L_cache, self.dtype, self.recurrent_layers)

    @property
    def shapes(self) -> list[OperationShape]:
        convolutions = [] if self.model.args.conv_bias else [self.convolutions]  # the kernel knows of no bias
        return [*super().shapes, *convolutions]

    def bytes_per_row(self, block: int) -> int:
        return self.convolutions.bytes_per_row(block)

    def make_memory(self) -> ShortConvolutions:
        return ShortConvolutions(self.convolutions, self.operations)

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
        conv = layer.conv.conv
        projected = apply(self.joint[index], x, self.operations, chosen)
        mixed = memory.convolve(place, projected, conv.weight[..., 0], conv.get("bias"))
        return apply(self.outputs[index], mixed, self.operations, chosen)
