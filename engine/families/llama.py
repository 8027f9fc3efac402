"""Llama and what shares its shape (SmolLM2, Mistral-like configurations of type `llama`)."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .transformer import Projected, Transformer


class Llama(Transformer):
    """Adapter over `mlx_lm.models.llama`, sliding layers included."""

    @property
    def head_dim(self) -> int:
        return self.layers[0].self_attn.head_dim

    def project(self, attn: Any, x: mx.array) -> Projected:
        count = x.shape[0]
        return Projected(
            attn.q_proj(x).reshape(count, attn.n_heads, -1),
            attn.k_proj(x).reshape(count, attn.n_kv_heads, -1),
            attn.v_proj(x).reshape(count, attn.n_kv_heads, -1),
        )

    def window(self, layer: Any) -> int | None:
        return self.body.sliding_window if layer.use_sliding else None
