"""What the decoder families share: the walk through the layers over packed tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import mlx.core as mx

from ...kernels.attention import attention
from ...kernels.packing import Packing
from ..pool import KVPool
from ..state import State

Mixer = Callable[[mx.array], mx.array]


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

    @property
    def bytes_per_slot(self) -> int:
        """Memory of one token's keys and values."""
        return KVPool.bytes_per_slot(self.kv_layers, self.kv_heads, self.head_dim, self.dtype)

    def bytes_per_row(self, block: int) -> int:
        """Memory of one row beside its slots, with up to `block` tokens of it in a round of drafts."""
        return 0

    def make_state(self, slots: int) -> State:
        """The state of rows that share so many token slots."""
        return State(KVPool(self.kv_layers, slots, self.kv_heads, self.head_dim, self.dtype))

    @abstractmethod
    def project(self, attn: Any, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Queries [N, H, D], keys and values [N, KV, D] of one attention module, before rope."""

    def window(self, layer: Any) -> int | None:
        """The sliding window of a layer in tokens, or None where it sees everything."""
        return None

    def forward(
        self, tokens: mx.array, packing: Packing, state: State, taps: Collection[int] = ()
    ) -> tuple[mx.array, list[mx.array]]:
        """Run packed tokens [N] through the layers, writing what their rows keep.

        Returns the hidden states [N, hidden] after the final norm, and the residual stream [N, hidden] after each of
        the layers in `taps`, in their order.
        """
        mixers = self.mixers(packing, state)
        x = self.embed(tokens)
        tapped: dict[int, mx.array] = {}
        for index, (layer, mix) in enumerate(zip(self.layers, mixers, strict=True)):
            x = x + mix(layer.input_layernorm(x))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            if index in taps:
                tapped[index] = x
        return self.norm(x), [tapped[index] for index in taps]

    def mixers(self, packing: Packing, state: State) -> list[Mixer]:
        """How each layer mixes tokens [N, hidden] with their rows' others."""
        return [partial(self.attend, i, layer, packing, state) for i, layer in enumerate(self.layers)]

    def attend(self, index: int, layer: Any, packing: Packing, state: State, x: mx.array) -> mx.array:
        """Attention of one layer, the `index`-th that attends."""
        attn = layer.self_attn
        queries, keys, values = self.project(attn, x)
        queries, keys = (rope(attn.rope, states, packing.positions) for states in (queries, keys))
        keys, values = state.write(index, packing.slots, keys, values)
        return attn.o_proj(attention(queries, keys, values, packing, attn.scale, self.window(layer)))

    def head(self, hidden: mx.array) -> mx.array:
        """Logits [M, vocabulary] of hidden states [M, hidden]."""
        return self.embed.as_linear(hidden) if self.tied else self.model.lm_head(hidden)


def rope(module: Any, states: mx.array, positions: mx.array) -> mx.array:
    """Rotate states [N, heads, D] to their absolute positions [N]: every token is its own sequence of length one."""
    return module(states[:, :, None], offset=positions)[:, :, 0]
