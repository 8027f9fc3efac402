"""Qwen3.5 and Qwen3.6, dense and MoE: most layers are recurrent (GatedDeltaNet), some attend, through a gate."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.gated_delta import compute_g, normalize_qk

from ...kernels import heats
from ...kernels.packing import Packing
from ..recurrent import Recurrent, Shape
from ..state import State
from .transformer import Projected, Transformer


class Qwen35(Transformer):
    """Adapter over `mlx_lm.models.qwen3_5` and `qwen3_5_moe`, of which only the language model is used."""

    def __init__(self, model: Any):
        super().__init__(model.language_model)
        recurrent = attending = 0
        self.kind_indices: list[int] = []  # of each layer, among the layers of its kind
        for layer in self.layers:
            self.kind_indices.append(recurrent if layer.is_linear else attending)
            recurrent, attending = recurrent + layer.is_linear, attending + (not layer.is_linear)
        self._attending = attending
        self._recurrent = recurrent

    @property
    def kv_layers(self) -> int:
        return self._attending

    @property
    def kv_heads(self) -> int:
        return self.model.args.num_key_value_heads

    @property
    def head_dim(self) -> int:
        return self.model.args.head_dim

    @property
    def heads(self) -> int:
        return self.model.args.num_attention_heads

    @property
    def shapes(self) -> list[heats.Shape]:
        return [*super().shapes, self.recurrent_shape]

    @property
    def recurrent_shape(self) -> Shape:
        args = self.model.args
        return Shape(
            layers=self._recurrent,
            key_heads=args.linear_num_key_heads,
            value_heads=args.linear_num_value_heads,
            key_dim=args.linear_key_head_dim,
            value_dim=args.linear_value_head_dim,
            taps=args.linear_conv_kernel_dim,
            dtype=self.dtype,
        )

    def bytes_per_row(self, block: int) -> int:
        return self.recurrent_shape.bytes_per_row(block)

    def make_state(self, slots: int) -> State:
        return State(super().make_state(slots).pool, Recurrent(self.recurrent_shape, self.operations))

    def forward(
        self, tokens: mx.array, packing: Packing, state: State, taps: Collection[int] = ()
    ) -> tuple[mx.array, list[mx.array]]:
        assert state.recurrent
        state.recurrent.begin(packing)
        return super().forward(tokens, packing, state, taps)

    def mix(self, index: int, layer: Any, x: mx.array, packing: Packing, state: State) -> mx.array:
        if layer.is_linear:
            assert state.recurrent
            return self.recur(self.kind_indices[index], layer.linear_attn, x, state.recurrent)
        return self.attend(self.kind_indices[index], layer, x, packing, state)

    def project(self, attn: Any, x: mx.array) -> Projected:
        count = x.shape[0]
        queries, gate = mx.split(attn.q_proj(x).reshape(count, attn.num_attention_heads, -1), 2, axis=-1)
        return Projected(
            attn.q_norm(queries),
            attn.k_norm(attn.k_proj(x).reshape(count, attn.num_key_value_heads, -1)),
            attn.v_proj(x).reshape(count, attn.num_key_value_heads, -1),
            gate.reshape(count, -1),
        )

    def recur(self, index: int, net: Any, x: mx.array, recurrent: Recurrent) -> mx.array:
        """The GatedDeltaNet of a layer, the `index`-th of those that are recurrent."""
        count = x.shape[0]
        mixed = nn.silu(recurrent.convolve(index, net.in_proj_qkv(x), net.conv1d.weight[..., 0]))
        q, k, v = mx.split(mixed, [net.key_dim, 2 * net.key_dim], axis=-1)
        q, k = (heads.reshape(count, net.num_k_heads, net.head_k_dim) for heads in (q, k))
        q, k = normalize_qk(q, k, inv_scale=net.head_k_dim**-0.5, eps=1e-6)
        v = v.reshape(count, net.num_v_heads, net.head_v_dim)
        decay = compute_g(net.A_log, net.in_proj_a(x), net.dt_bias)
        output = recurrent.update(index, q, k, v, decay, mx.sigmoid(net.in_proj_b(x)))
        gate = net.in_proj_z(x).reshape(v.shape)
        return net.out_proj(net.norm(output, gate).reshape(count, -1))
