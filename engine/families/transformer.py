"""What the decoder families share: the walk through the layers over packed tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, NamedTuple

import mlx.core as mx

from ...kernels.heats import AttentionShape, Shape
from ...kernels.operations import Operations
from ...kernels.packing import Packing
from ..linear import known_embedding, product, route
from ..pool import KVPool
from ..state import State


class Projected(NamedTuple):
    """Queries [N, H, D], keys and values [N, KV, D] before rope; `gate` [N, H * D] where what is seen is gated."""

    queries: mx.array
    keys: mx.array
    values: mx.array
    gate: mx.array | None = None


class Transformer(ABC):
    """Forward of a decoder over packed tokens: linear layers see [N, hidden], only attention knows about rows."""

    def __init__(self, model: Any):
        self.model = model
        self.body = model.model
        self.layers: list[Any] = model.layers
        self.norm = self.body.norm
        self.embed = self.body.embed_tokens
        self.tied: bool = model.args.tie_word_embeddings
        self.operations = Operations()

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

    @property
    def heads(self) -> int:
        return self.layers[0].self_attn.n_heads

    @property
    def shapes(self) -> list[Shape]:
        """What its attention and recurrent layers work on."""
        return [AttentionShape(self.heads, self.kv_heads, self.head_dim, self.dtype)]

    def use(self, operations: Operations) -> None:
        """Run these operations from now on; states are made afterwards."""
        self.operations = operations
        route(self.model, operations)

    @abstractmethod
    def project(self, attn: Any, x: mx.array) -> Projected:
        """What one attention module makes of tokens [N, hidden]."""

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
        x = self.embed(tokens)
        tapped: dict[int, mx.array] = {}
        for index, layer in enumerate(self.layers):
            x = x + self.mix(index, layer, layer.input_layernorm(x), packing, state)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            if index in taps:
                tapped[index] = x
        return self.norm(x), [tapped[index] for index in taps]

    def mix(self, index: int, layer: Any, x: mx.array, packing: Packing, state: State) -> mx.array:
        """Mix tokens [N, hidden] with the others of their rows, in the layer `index`."""
        return self.attend(index, layer, x, packing, state)

    def attend(self, index: int, layer: Any, x: mx.array, packing: Packing, state: State) -> mx.array:
        """Attention of a layer, the `index`-th of those that attend."""
        attn = layer.self_attn
        queries, keys, values, gate = self.project(attn, x)
        queries, keys = (rope(attn.rope, states, packing.positions) for states in (queries, keys))
        keys, values = state.write(index, packing.slots, keys, values)
        mixed = self.operations.attention(queries, keys, values, packing, attn.scale, self.window(layer))
        return attn.o_proj(mixed if gate is None else mixed * mx.sigmoid(gate))

    def head(self, hidden: mx.array) -> mx.array:
        """Logits [M, vocabulary] of hidden states [M, hidden]."""
        if not self.tied:
            return self.model.lm_head(hidden)
        if known_embedding(self.embed):
            return product(hidden, self.embed, self.operations)
        return self.embed.as_linear(hidden)


def rope(module: Any, states: mx.array, positions: mx.array) -> mx.array:
    """Rotate states [N, heads, D] to their absolute positions [N]: every token is its own sequence of length one."""
    return module(states[:, :, None], offset=positions)[:, :, 0]
