"""Qwen3, dense and MoE: Llama's shape with normed queries and keys. A block of experts is an MLP like any other."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from ....kernels.fused.rotary import Layout, Norms
from .transformer import Transformer


class Qwen3(Transformer):
    """Adapter over `mlx_lm.models.qwen3` and `qwen3_moe`."""

    @cached_property
    def layout(self) -> Layout:
        attn = self.layers[0].self_attn
        dim = attn.k_norm.weight.shape[0]
        return Layout(attn.n_heads, attn.n_kv_heads, dim, dim, epsilon=attn.k_norm.eps)

    def norms(self, attn: Any) -> Norms:
        return attn.q_norm.weight, attn.k_norm.weight
