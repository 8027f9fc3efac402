"""gpt-oss: every head has a sink, every second layer slides, and every MLP is a block of experts."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import mlx.core as mx

from ....kernels.fused.rotary import Layout
from .transformer import Transformer


class GptOss(Transformer):
    """Adapter over `mlx_lm.models.gpt_oss`. Experts are in MXFP4 as a rule, and have biases."""

    @cached_property
    def layout(self) -> Layout:
        attn = self.attention_layers[0]
        return Layout(attn.num_attention_heads, attn.num_key_value_heads, attn.head_dim, attn.head_dim)

    @property
    def expert_width(self) -> int:
        args = self.model.args
        return args.num_experts_per_tok * (3 * args.intermediate_size + self.hidden_size)

    def scale(self, attn: Any) -> float:
        return attn.sm_scale

    def sinks(self, attn: Any) -> mx.array:
        return attn.sinks.astype(self.dtype)

    def window(self, index: int) -> int | None:
        return None if self.body.layer_types[index] == "full_attention" else self.body.window_size
