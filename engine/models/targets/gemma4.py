"""Gemma 4: layers that slide and layers that see everything have heads of their own; some lend theirs to later layers.

In small ones each layer has an input of its own beside the stream. Experts run beside the plain MLP, not in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ....kernels.fused.rotary import Layout, Norms
from ..layers import geglu
from ..linear import apply, bound
from .transformer import Pass, Transformer


class Gemma4(Transformer):
    """Adapter over the text model of `mlx_lm.models.gemma4`, which is `gemma4_text`."""

    trains_drafts = False  # its layers take more than the one before gives

    def __init__(self, model: Any):
        super().__init__(model)
        beside = self.layers if self.body.hidden_size_per_layer_input else []
        self.beside_gates: list[Any] = [bound(layer.per_layer_input_gate) for layer in beside]
        self.beside_outputs: list[Any] = [bound(layer.per_layer_projection) for layer in beside]

    @cached_property
    def layout(self) -> Layout:
        return self.layouts[0]

    @cached_property
    def layouts(self) -> list[Layout]:
        return [self._layout(attn) for attn in self.attention_layers]

    def _layout(self, attn: Any) -> Layout:
        dim, own = attn.head_dim, attn.has_kv
        return Layout(
            attn.n_heads,
            attn.n_kv_heads if own else 0,
            dim,
            dim,  # a rope that turns a part of the head turns the rest by nothing
            epsilon=attn.q_norm.eps,
            neighbours=self.model.args.rope_traditional,
            values_normed=own,
            keys_as_values=own and attn.use_k_eq_v,
        )

    @cached_property
    def pools(self) -> list[int]:
        return self.body.previous_kvs  # layers with keys of their own come first

    @property
    def expert_layers(self) -> int:
        return sum(layer.enable_moe for layer in self.layers)

    @property
    def expert_width(self) -> int:
        args = self.model.args
        return args.top_k_experts * (3 * args.moe_intermediate_size + self.hidden_size)

    def workspace(self, tokens: int, slots: int) -> int:
        beside = 2 * len(self.beside_gates) * self.body.hidden_size_per_layer_input  # what enters, and its product
        return super().workspace(tokens, slots) + self.dtype.size * tokens * beside

    def projections(self, layer: Any) -> list[nn.Module]:
        attn = layer.self_attn
        return [attn[name] for name in ("q_proj", "k_proj", "v_proj") if name in attn]

    def linears(self) -> Iterator[tuple[list[Any], int, list[nn.Module]]]:
        yield from super().linears()
        for index, layer in enumerate(self.layers[: len(self.beside_gates)]):
            yield self.beside_gates, index, [layer.per_layer_input_gate]
            yield self.beside_outputs, index, [layer.per_layer_projection]

    def norms_before(self, layer: Any) -> tuple[nn.RMSNorm, nn.RMSNorm]:
        return layer.input_layernorm, layer.pre_feedforward_layernorm

    def norms(self, attn: Any) -> Norms:
        return attn.q_norm.weight, attn.k_norm.weight if attn.has_kv else attn.q_norm.weight

    def window(self, index: int) -> int | None:
        return self.body.window_size if self.layers[index].self_attn.is_sliding else None

    def rope_kind(self, attn: Any) -> bool:
        return attn.is_sliding

    def enter(self, tokens: mx.array) -> mx.array:
        return self.embed(tokens) * self.hidden_size**0.5

    def embed_drafts(self, tokens: mx.array) -> mx.array:
        return self.enter(tokens)

    def enter_beside(self, tokens: mx.array, x: mx.array) -> mx.array | None:
        body, size = self.body, self.body.hidden_size_per_layer_input
        if not size:
            return None
        shape = tokens.shape[0], len(self.layers), size
        embedded = (body.embed_tokens_per_layer(tokens) * size**0.5).reshape(shape)
        projected = (body.per_layer_model_projection(x) * self.hidden_size**-0.5).reshape(shape)
        return (body.per_layer_projection_norm(projected) + embedded) * 2**-0.5

    def run_layer(
        self, index: int, layer: Any, x: mx.array, y: mx.array, norm: nn.RMSNorm, through: Pass
    ) -> tuple[mx.array, mx.array]:
        _, middle = self.before[index]
        mixed = layer.post_attention_layernorm(self.mix(index, layer, y, through))
        x, y = self._add_norm(x, mixed, middle)
        fed = self.feed(index, layer, y, through)
        if layer.enable_moe:
            fed = layer.post_feedforward_layernorm_1(fed) + self.consult(layer, x)
        fed = layer.post_feedforward_layernorm(fed)
        if through.beside is not None:
            x = x + fed
            inner = geglu(apply(self.beside_gates[index], x, self.operations, through.chosen), through.beside[:, index])
            outer = apply(self.beside_outputs[index], inner, self.operations, through.chosen)
            fed = layer.post_per_layer_input_norm(outer)
        x = _scaled_sum(x, fed, layer.layer_scalar)
        return x, norm(x)

    def consult(self, layer: Any, x: mx.array) -> mx.array:
        """What the experts of a layer give, normed, of the residual stream x [N, hidden]."""
        chosen, weights = layer.router(x)
        return layer.post_feedforward_layernorm_2(layer.experts(layer.pre_feedforward_layernorm_2(x), chosen, weights))

    def activate(self, gate: mx.array, up: mx.array) -> mx.array:
        return geglu(gate, up)

    def head(self, hidden: mx.array) -> mx.array:
        logits, cap = self.score_drafts(hidden), self.model.args.final_logit_softcapping
        return logits if cap is None else mx.tanh(logits / cap) * cap

    def score_drafts(self, hidden: mx.array) -> mx.array:
        return super().head(hidden)


@partial(mx.compile, shapeless=True)
def _scaled_sum(x: mx.array, y: mx.array, scale: mx.array) -> mx.array:
    return (x + y) * scale
