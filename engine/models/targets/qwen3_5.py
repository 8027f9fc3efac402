"""Qwen3.5 and Qwen3.6, dense and MoE: most layers are recurrent (GatedDeltaNet), some attend, through a gate."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.gated_delta import compute_g

from ....kernels.fused.rotary import Layout, Norms
from ....kernels.products.low_rank import Chosen
from ....kernels.race import contestants
from ....kernels.recurrent.convolution import Heads
from ...state.recurrent_state import Recurrent, RecurrentLayers
from ..linear import apply
from .hybrid import Hybrid


class Qwen35(Hybrid):
    """Adapter over the text model of `mlx_lm.models.qwen3_5`, which is that of `qwen3_5_moe`, too."""

    @cached_property
    def layout(self) -> Layout:
        args, attn = self.model.args, self.attention_layers[0]
        rotated = int(args.head_dim * args.partial_rotary_factor)
        heads = args.num_attention_heads, args.num_key_value_heads
        return Layout(*heads, args.head_dim, rotated, epsilon=attn.k_norm.eps, stride=2 * args.head_dim)

    @property
    def shapes(self) -> list[contestants.OperationShape]:
        return [*super().shapes, self.recurrent_shape]

    @property
    def recurrent_shape(self) -> RecurrentLayers:
        args = self.model.args
        heads = Heads(
            args.linear_num_key_heads,
            args.linear_num_value_heads,
            args.linear_key_head_dim,
            args.linear_value_head_dim,
        )
        return RecurrentLayers(heads, args.linear_conv_kernel_dim, self.dtype, self.recurrent_layers)

    def bytes_per_row(self, block: int) -> int:
        return self.recurrent_shape.bytes_per_row(block)

    def make_memory(self) -> Recurrent:
        return Recurrent(self.recurrent_shape, self.operations)

    def recurs(self, layer: Any) -> bool:
        return layer.is_linear

    def projections(self, layer: Any) -> list[nn.Module]:
        if not layer.is_linear:
            return super().projections(layer)
        net = layer.linear_attn
        return [net.in_proj_qkv, net.in_proj_z, net.in_proj_b, net.in_proj_a]

    def output(self, layer: Any) -> nn.Module:
        return layer.linear_attn.out_proj if layer.is_linear else super().output(layer)

    def norms(self, attn: Any) -> Norms:
        return attn.q_norm.weight, attn.k_norm.weight

    def project(self, index: int, x: mx.array, chosen: Chosen | None) -> mx.array:
        """Of tokens [N, hidden] queries, keys, values, gates, b and a [N, width] of the recurrent layer `index`."""
        return apply(self.joint[index], x, self.operations, chosen)

    def recur(
        self, index: int, place: int, layer: Any, x: mx.array, memory: Recurrent, chosen: Chosen | None
    ) -> mx.array:
        net = layer.linear_attn
        count, inputs = x.shape[0], 2 * net.key_dim + net.value_dim
        projected = self.project(index, x, chosen)
        ends = [inputs, inputs + net.value_dim, inputs + net.value_dim + net.num_v_heads]
        _, gate, b, a = mx.split(projected, ends, axis=-1)
        q, k, v = memory.convolve(place, projected, net.conv1d.weight[..., 0])
        decay = compute_g(net.A_log, a, net.dt_bias)
        output = memory.update(place, q, k, v, decay, mx.sigmoid(b))
        output = net.norm(output, gate.reshape(v.shape)).reshape(count, -1)
        return apply(self.outputs[index], output, self.operations, chosen)
