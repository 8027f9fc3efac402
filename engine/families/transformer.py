"""What the dense decoder families share: the walk through the layers over packed tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

import mlx.core as mx

from ...kernels.attention import attention
from ...kernels.packing import Packing
from ..pool import KVPool


class Transformer(ABC):
    """Forward of a decoder over packed tokens: linear layers see [N, hidden], only attention knows about rows."""

    def __init__(self, model: Any):
        self.model = model
        self.body = model.model
        self.layers: list[Any] = model.layers
        self.norm = self.body.norm
        self.embed = self.body.embed_tokens
        self.tied: bool = model.args.tie_word_embeddings

    @property
    def dtype(self) -> mx.Dtype:
        """The type of activations; weights may be quantised."""
        return self.norm.weight.dtype

    @property
    def hidden_size(self) -> int:
        return self.norm.weight.shape[0]

    @property
    def vocabulary(self) -> int:
        return self.embed.weight.shape[0]

    @property
    def kv_heads(self) -> int:
        return self.layers[0].self_attn.n_kv_heads

    @property
    @abstractmethod
    def head_dim(self) -> int: ...

    @property
    def kv_layers(self) -> int:
        return len(self.layers)

    @abstractmethod
    def project(self, attn: Any, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Queries [N, H, D], keys and values [N, KV, D] of one attention module, before rope."""

    def window(self, layer: Any) -> int | None:
        """The sliding window of a layer in tokens, or None where it sees everything."""
        return None

    def forward(
        self, tokens: mx.array, packing: Packing, pool: KVPool, taps: Collection[int] = ()
    ) -> tuple[mx.array, list[mx.array]]:
        """Run packed tokens [N] through the layers, writing their keys and values.

        Returns the hidden states [N, hidden] after the final norm, and the residual stream [N, hidden] after each of
        the layers in `taps`, in their order.
        """
        x = self.embed(tokens)
        tapped: dict[int, mx.array] = {}
        for index, layer in enumerate(self.layers):
            x = x + self.attend(index, layer, layer.input_layernorm(x), packing, pool)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            if index in taps:
                tapped[index] = x
        return self.norm(x), [tapped[index] for index in taps]

    def attend(self, index: int, layer: Any, x: mx.array, packing: Packing, pool: KVPool) -> mx.array:
        attn = layer.self_attn
        queries, keys, values = self.project(attn, x)
        queries, keys = (rope(attn.rope, states, packing.positions) for states in (queries, keys))
        pool_keys, pool_values = pool.write(index, packing.slots, keys, values)
        mixed = attention(queries, pool_keys, pool_values, packing, attn.scale, self.window(layer))
        return attn.o_proj(mixed)

    def head(self, hidden: mx.array) -> mx.array:
        """Logits [M, vocabulary] of hidden states [M, hidden]."""
        return self.embed.as_linear(hidden) if self.tied else self.model.lm_head(hidden)


def rope(module: Any, states: mx.array, positions: mx.array) -> mx.array:
    """Rotate states [N, heads, D] to their absolute positions [N]: every token is its own sequence of length one."""
    return module(states[:, :, None], offset=positions)[:, :, 0]
