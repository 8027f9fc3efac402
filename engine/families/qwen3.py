"""Qwen3 dense: Llama's shape with normed queries and keys."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .transformer import Transformer


class Qwen3(Transformer):
    """Adapter over `mlx_lm.models.qwen3`."""

    @property
    def head_dim(self) -> int:
        return self.layers[0].self_attn.k_norm.weight.shape[0]

    def project(self, attn: Any, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        count = x.shape[0]
        return (
            attn.q_norm(attn.q_proj(x).reshape(count, attn.n_heads, -1)),
            attn.k_norm(attn.k_proj(x).reshape(count, attn.n_kv_heads, -1)),
            attn.v_proj(x).reshape(count, attn.n_kv_heads, -1),
        )
