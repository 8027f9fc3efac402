"""Qwen2 and Qwen2.5: Llama's shape with biases before attention, which are part of the joint projections."""

from __future__ import annotations

from functools import cached_property

from ....kernels.fused.rotary import Layout
from .transformer import Transformer


class Qwen2(Transformer):
    """Adapter over `mlx_lm.models.qwen2`."""

    @cached_property
    def layout(self) -> Layout:
        args = self.model.args
        dim = args.hidden_size // args.num_attention_heads
        return Layout(args.num_attention_heads, args.num_key_value_heads, dim, dim, neighbours=args.rope_traditional)
