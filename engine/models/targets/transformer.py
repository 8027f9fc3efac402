"""What the decoder families share: the walk through the layers over packed tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ....kernels.attention.manner import Manner
from ....kernels.fused.rotary import Layout, Norms
from ....kernels.operations import Operations
from ....kernels.packing import Packing
from ....kernels.products.low_rank import Chosen
from ....kernels.race.contestants import AttentionShape, ChoiceShape, NormShape, OperationShape, RotaryShape
from ...state.kv_pool import Heads, KVPool
from ...state.state import State
from ..experts import expert_shapes, ordered
from ..layers import gated, swiglu, turns
from ..linear import apply, bound, join, known, low_rank_shapes, product, products, width

ACTIVATIONS, LOGITS = 8, 4
"""Beside the projections of every layer, a round holds so many vectors of the hidden size in each, and so many copies
of the logits, those of the next round among them.
"""


class Pass(NamedTuple):
    """What one pass of packed tokens through the layers needs: where they lie, what they keep, and how they turn.

    `turns` are cosines and sines of the tokens' positions [N, 2, rotated / 2], by kind of rope. `chosen` are the LoRA
    adapters of the tokens, if any has one. `beside` is what enters each layer beside its input [N, layers, size], where
    a family has such.
    """

    packing: Packing
    state: State
    turns: Mapping[Hashable, mx.array]
    chosen: Chosen | None = None
    beside: mx.array | None = None


class Transformer(ABC):
    """Forward of a decoder over packed tokens: linear layers see [N, hidden], only attention knows about rows.

    Reads the modules and weights of mlx-lm's model. Projections of one input are joined, once, so that a layer takes
    few launches.
    """

    trains_drafts = True
    """Whether drafts can be trained on it, which runs mlx-lm's layers one after the other."""

    def __init__(self, model: Any):
        self.model = model
        self.body = model.model
        self.layers: list[Any] = model.layers
        self.norm = self.last_norm()
        self.embed = self.body.embed_tokens
        self.tied = "lm_head" not in model
        self.operations = Operations()
        self.before = [self.norms_before(layer) for layer in self.layers]
        self.head_norms = [self.norms(attn) for attn in self.attention_layers]
        self.manners = [self.manner(index) for index in self.attending]
        self.joint: list[Any] = [bound(join(self.projections(layer))) for layer in self.layers]
        self.outputs: list[Any] = [bound(self.output(layer)) for layer in self.layers]
        self.mlps = [dense(self.mlp(layer)) for layer in self.layers]
        self.gates: list[Any] = [bound(join([mlp.gate, mlp.up])) if mlp else None for mlp in self.mlps]
        self.downs: list[Any] = [bound(mlp.down) if mlp else None for mlp in self.mlps]
        self.mixtures: list[Any] = [
            None if mlp else ordered(self.mlp(layer), lambda: self.operations)
            for layer, mlp in zip(self.layers, self.mlps, strict=True)
        ]

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

    @cached_property
    @abstractmethod
    def layout(self) -> Layout:
        """Queries, keys and values in the joint projection of an attention layer; of the first, where they differ."""

    @cached_property
    def layouts(self) -> list[Layout]:
        """The layouts of the layers that attend, in order."""
        return [self.layout] * len(self.attending)

    @cached_property
    def pools(self) -> list[int]:
        """Which pool has the keys and values of each layer that attends: its own, or one of an earlier layer."""
        return list(range(len(self.attending)))

    @property
    def kept(self) -> list[Layout]:
        """The layouts of the layers that have a pool of their own."""
        return [layout for layout in self.layouts if layout.kv_heads]

    @property
    def heads(self) -> list[Heads]:
        """The heads of each pool."""
        return [(layout.kv_heads, layout.dim) for layout in self.kept]

    @cached_property
    def attending(self) -> list[int]:
        """Which layers attend."""
        return list(range(len(self.layers)))

    @cached_property
    def attention_layers(self) -> list[Any]:
        """The attention modules, in order."""
        return [self.layers[index].self_attn for index in self.attending]

    def manner(self, index: int) -> Manner:
        """How the layer `index` attends."""
        attn = self.layers[index].self_attn
        return Manner(self.scale(attn), self.window(index), self.sinks(attn), self.cap)

    @property
    def bytes_per_page(self) -> int:
        """Memory of the keys and values in one page."""
        return KVPool.bytes_per_page(self.heads, self.dtype)

    def bytes_per_row(self, block: int) -> int:
        """Memory of one row beside its pages, with up to `block` tokens of it in a round of drafts."""
        return 0

    def workspace(self, tokens: int, slots: int) -> int:
        """Bytes that two rounds in flight take beside what is kept, of so many tokens in all, so many of them scored.

        A device holds what an operation leaves until the operations launched with it have run: all layers', of the
        round that runs, and the logits of both.
        """
        linears = [*self.joint, *filter(None, self.gates), *self.outputs]
        widths = sum(map(width, linears)) + ACTIVATIONS * len(self.layers) * self.hidden_size
        experts = self.expert_layers * self.expert_width if self.expert_layers else 0
        held = tokens * (widths + experts) + LOGITS * slots * self.vocabulary
        return self.dtype.size * held + self.operations.bytes_to_choose(slots, self.vocabulary, self.dtype)

    @property
    def expert_layers(self) -> int:
        """How many layers have experts."""
        return self.gates.count(None)

    @property
    def expert_width(self) -> int:
        """Elements that a token leaves in a layer of experts."""
        args = self.model.args
        return args.num_experts_per_tok * (3 * args.moe_intermediate_size + self.hidden_size)

    def make_state(self, pages: int) -> State:
        """The state of rows that share so many pages."""
        return State(KVPool(self.heads, pages, self.dtype, self.operations))

    @property
    def shapes(self) -> list[OperationShape]:
        """What its operations work on."""
        sinks = self.manners[0].sinks is not None
        kinds = {(layout.heads, layout.kv_heads, layout.dim): None for layout in self.kept}
        attention = [AttentionShape(*heads, self.dtype, sinks=sinks, cap=self.cap) for heads in kinds]
        rotary = [RotaryShape(layout, self.dtype) for layout in dict.fromkeys(self.layouts)]
        linears = [*self.joint, *filter(None, self.gates), *self.outputs, self.unembed, *filter(None, self.downs)]
        norm = NormShape(self.hidden_size, self.dtype)
        choices = [ChoiceShape(self.vocabulary, self.dtype)]
        if self.dtype != mx.float32:  # as logits are that rows change; a few at a time
            choices.append(ChoiceShape(self.vocabulary, mx.float32, most=16))
        mixtures = [block for block in self.mixtures if block is not None]
        chosen = self.model.args.num_experts_per_tok if mixtures else 0
        experts = expert_shapes(mixtures, chosen, self.dtype)
        adapters = low_rank_shapes(linears, self.dtype)
        return [*attention, *rotary, norm, *products(linears, self.dtype), *adapters, *experts, *choices]

    def projections(self, layer: Any) -> list[nn.Module]:
        """The linear layers that read what enters a layer's attention."""
        return [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]

    def linears(self) -> Iterator[tuple[list[Any], int, list[nn.Module]]]:
        """The linear layers inside the layers: the list and the place of each, and mlx-lm's that it consists of."""
        for index, layer in enumerate(self.layers):
            yield self.joint, index, self.projections(layer)
            yield self.outputs, index, [self.output(layer)]
            if mlp := self.mlps[index]:
                yield self.gates, index, [mlp.gate, mlp.up]
                yield self.downs, index, [mlp.down]

    def output(self, layer: Any) -> nn.Module:
        """The linear layer after a layer's attention."""
        return layer.self_attn.o_proj

    def mlp(self, layer: Any) -> Any:
        """A layer's MLP, or its experts."""
        return layer.mlp

    def last_norm(self) -> nn.RMSNorm:
        """The norm after the last layer."""
        return self.body.norm

    def norms_before(self, layer: Any) -> tuple[nn.RMSNorm, nn.RMSNorm]:
        """The norms before a layer's attention and before its MLP."""
        return layer.input_layernorm, layer.post_attention_layernorm

    def norms(self, attn: Any) -> Norms | None:
        """Weights of the norms of queries and keys, where they are normed."""
        return None

    def sinks(self, attn: Any) -> mx.array | None:
        """A score of each head [H], where they have sinks: it takes its share of the weights, and has no value."""
        return None

    def scale(self, attn: Any) -> float:
        """The factor of scores."""
        return attn.scale

    @property
    def cap(self) -> float | None:
        """What no score goes beyond, where scores are capped."""
        return None

    def window(self, index: int) -> int | None:
        """The sliding window of the layer `index` in tokens, or None where it sees everything."""
        return None

    def rope_kind(self, attn: Any) -> Hashable:
        """Attention layers whose rope is of one kind turn alike."""
        return None

    def forward(
        self,
        tokens: mx.array,
        packing: Packing,
        state: State,
        tapped: Collection[int] = (),
        chosen: Chosen | None = None,
    ) -> tuple[mx.array, list[mx.array]]:
        """Run packed tokens [N] through the layers, with the LoRA adapters `chosen`, writing what their rows keep.

        Returns the hidden states [N, hidden] after the final norm, and the residual stream [N, hidden] after each of
        the layers in `tapped`, in their order.
        """
        x = self.enter(tokens)
        return self.run(x, packing, state, tapped, chosen, self.enter_beside(tokens, x))

    def run(
        self,
        x: mx.array,
        packing: Packing,
        state: State,
        tapped: Collection[int] = (),
        chosen: Chosen | None = None,
        beside: mx.array | None = None,
    ) -> tuple[mx.array, list[mx.array]]:
        """As `forward`, from what enters the first layer [N, hidden], and what enters every layer beside its input."""
        state.begin(packing)
        through = Pass(packing, state, self.turns(packing.positions), chosen, beside)
        y = self.before[0][0](x)
        taps: dict[int, mx.array] = {}
        following = [*(first for first, _ in self.before[1:]), self.norm]
        for index, (layer, norm) in enumerate(zip(self.layers, following, strict=True)):
            x, y = self.run_layer(index, layer, x, y, norm, through)
            if index in tapped:
                taps[index] = x
        return y, [taps[index] for index in tapped]

    def enter(self, tokens: mx.array) -> mx.array:
        """What enters the first layer [N, hidden] for tokens [N]."""
        return self.embed(tokens)

    def enter_beside(self, tokens: mx.array, x: mx.array) -> mx.array | None:
        """What enters every layer beside its input [N, layers, size], for tokens [N] of which `x` enters the first."""
        return None

    def embed_drafts(self, tokens: mx.array) -> mx.array:
        """What enters a draft [N, hidden] for tokens [N]: the embedding, unless a family's drafts are made for more."""
        return self.embed(tokens)

    def run_layer(
        self, index: int, layer: Any, x: mx.array, y: mx.array, norm: nn.RMSNorm, through: Pass
    ) -> tuple[mx.array, mx.array]:
        """The layer `index` over the residual stream x [N, hidden], which is y when normed; gives both after it, of
        which `norm` is the next layer's.
        """
        _, middle = self.before[index]
        x, y = self._add_norm(x, self.mix(index, layer, y, through), middle)
        return self._add_norm(x, self.feed(index, layer, y, through), norm)

    def mix(self, index: int, layer: Any, x: mx.array, through: Pass) -> mx.array:
        """Mix tokens [N, hidden] with the others of their rows, in the layer `index`."""
        return self.attend(index, index, layer, x, through)

    def attend(self, index: int, place: int, layer: Any, x: mx.array, through: Pass) -> mx.array:
        """Attention of the layer `index`, whose place is `place` among those that attend."""
        attn, layout, (packing, state, *_) = layer.self_attn, self.layouts[place], through
        projected = apply(self.joint[index], x, self.operations, through.chosen)
        pool = state.pool[self.pools[place]]
        turns = through.turns[self.rope_kind(attn)]
        queries = self.operations.rotate(projected, turns, self.head_norms[place], layout, pool, packing.places)
        mixed = self.operations.attention(queries, pool, packing, self.manners[place])
        if layout.step > layout.dim:  # a head's queries are followed by its gate
            gate = projected[:, : layout.heads * layout.step].reshape(*queries.shape[:2], -1)[..., layout.dim :]
            mixed = gated(gate.reshape(mixed.shape), mixed)
        return apply(self.outputs[index], mixed, self.operations, through.chosen)

    def feed(self, index: int, layer: Any, x: mx.array, through: Pass) -> mx.array:
        """The MLP of a layer, or its experts."""
        both = self.gates[index]
        if both is None:
            return self.mixtures[index](x)
        hidden = self.activate(*mx.split(apply(both, x, self.operations, through.chosen), 2, axis=-1))
        return apply(self.downs[index], hidden, self.operations, through.chosen)

    def activate(self, gate: mx.array, up: mx.array) -> mx.array:
        """The two halves of an MLP's inside as one."""
        return swiglu(gate, up)

    @property
    def unembed(self) -> nn.Module:
        """The head, or the embedding if that is the head too."""
        return self.embed if self.tied else self.model.lm_head

    def head(self, hidden: mx.array) -> mx.array:
        """Logits [M, vocabulary] of hidden states [M, hidden]."""
        if not self.tied:
            return apply(self.model.lm_head, hidden, self.operations)
        return product(self.embed, hidden, self.operations) if known(self.embed) else self.embed.as_linear(hidden)

    def score_drafts(self, hidden: mx.array) -> mx.array:
        """Logits [M, vocabulary] of hidden states [M, hidden] of a draft, which may scale and cap them itself."""
        return self.head(hidden)

    def turns(self, positions: mx.array) -> dict[Hashable, mx.array]:
        """Cosines and sines [N, 2, rotated / 2] of positions [N] by kind of rope, from the model's own ropes."""
        return {kind: turns(rope, layout, positions) for kind, (rope, layout) in self._ropes.items()}

    @cached_property
    def _ropes(self) -> dict[Hashable, tuple[Any, Layout]]:
        """A rope of each kind, and the layout of a layer that has it."""
        attending = zip(self.attention_layers, self.layouts, strict=True)
        return {self.rope_kind(attn): (attn.rope, layout) for attn, layout in attending}

    def _add_norm(self, x: mx.array, y: mx.array, norm: nn.RMSNorm) -> tuple[mx.array, mx.array]:
        return self.operations.add_norm(x, y, norm.weight, norm.eps)


class MLP(NamedTuple):
    """The linear layers of a plain gated MLP."""

    gate: nn.Module
    up: nn.Module
    down: nn.Module


def dense(mlp: Any) -> MLP | None:
    """The layers of an MLP, by either of the names that they have; None if it consists of experts."""
    for names in (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")):
        if all(name in mlp for name in names):
            return MLP(*(mlp[name] for name in names))
    return None
