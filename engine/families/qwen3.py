"""Qwen3, dense and MoE: Llama's shape with normed queries and keys. A block of experts is an MLP like any other."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .transformer import Projected, Transformer


class Qwen3(Transformer):
    """Adapter over `mlx_lm.models.qwen3` and `qwen3_moe`."""

    @property
    def head_dim(self) -> int:
        return self.layers[0].self_attn.k_norm.weight.shape[0]

    def project(self, attn: Any, x: mx.array) -> Projected:
        count = x.shape[0]
        return Projected(
            attn.q_norm(attn.q_proj(x).reshape(count, attn.n_heads, -1)),
            attn.k_norm(attn.k_proj(x).reshape(count, attn.n_kv_heads, -1)),
            attn.v_proj(x).reshape(count, attn.n_kv_heads, -1),
        )
