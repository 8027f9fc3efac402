"""The operations of the engine, each in the form that is best on this machine: plain MLX, or a kernel of our own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx

from .attention.manner import Manner
from .attention.ragged_attention import ragged_attention
from .attention.stock_attention import attention_by_row, attention_together
from .choose.choose import Setting, choose, choose_by_kernel, workspace
from .fused.add_norm import add_norm, add_norm_by_kernel
from .fused.rotary import Layout, Norms, rotate, rotate_by_kernel
from .gpu.launch import on_gpu
from .gpu.source import Launch
from .packing import Packing
from .pages.places import Places
from .pages.pool import LayerPool
from .products.experts import ROOM, Through, experts, experts_by_kernel, experts_in_other_order
from .products.low_rank import Chosen, LowRank, add_low_rank, add_low_rank_by_kernel
from .products.low_rank import fits as low_rank_fits
from .products.quantisation import Weight
from .products.quantized_matmul import quantized_matmul, quantized_matmul_by_kernel
from .products.tiling import TILINGS
from .race.keys import (
    KERNEL,
    OTHER_ORDER,
    STOCK,
    TOGETHER,
    ExpertsKind,
    Key,
    attention_key,
    choice_key,
    experts_key,
    low_rank_key,
    norm_key,
    product_key,
    recurrence_key,
    rotary_key,
)
from .recurrent.convolution import Convolved, Heads, convolved_heads, gated_convolution
from .recurrent.gated_delta import Tape, gated_delta
from .recurrent.plan import Steps
from .recurrent.recurrence import convolved_heads_by_kernel, gated_convolution_by_kernel, gated_delta_by_kernel


@dataclass(frozen=True)
class Operations:
    """What happens to tokens between and around their linear layers, and the quantised products of these.

    `winners` name the form of an operation at the shapes that were raced (`race`); other shapes take those of the
    nearest one, and without a race everything is stock. `launch` runs kernels, and `in_place` says whether they write
    pools: the CPU scatters, and so does a GPU where `pages.proof` fails.
    """

    winners: Mapping[Key, str] = field(default_factory=dict)
    launch: Launch = on_gpu
    in_place: bool = field(default_factory=lambda: mx.default_device() != mx.cpu)

    def pool(self, pages: int, heads: int, dim: int, dtype: mx.Dtype) -> LayerPool:
        """A layer's pool for keys and values of `heads` of `dim`."""
        return LayerPool(pages, heads, dim, dtype, self.launch if self.in_place else None)

    def without(self, dropped: Collection[str]) -> Operations:
        """These, of which the ones with the names `dropped`, as keys begin with them, are stock."""
        return replace(self, winners={key: form for key, form in self.winners.items() if key[0] not in dropped})

    def attention(
        self,
        queries: mx.array,
        pool: LayerPool,
        packing: Packing,
        manner: Manner,
    ) -> mx.array:
        """Attention of packed queries [N, H, D] over a pool that has the keys of their tokens; returns [N, H * D].

        Rows that decode and rows that prefill may take different forms.
        """
        if packing.halves is None:
            return self._attention(queries, pool, packing, manner)
        halves = [self._attention(queries[tokens], pool, half, manner) for half, tokens in packing.halves]
        return mx.concatenate(halves)[packing.order]

    def _attention(self, queries: mx.array, pool: LayerPool, packing: Packing, manner: Manner) -> mx.array:
        parts = manner.sinks is not None, manner.cap is not None
        heads = ("form", queries.shape[1:], pool.heads, queries.dtype, parts)
        form = packing.kept.get(heads)
        if form is None:
            unraced = TOGETHER if packing.even else STOCK  # few calls: each costs the host as much as a layer's rest
            form = self.winners.get(attention_key(queries, pool.heads, packing, *parts), unraced)
            packing.kept[heads] = form
        if form == KERNEL and pool.launch:
            return ragged_attention(queries, pool, packing, manner)
        stock = attention_together if form == TOGETHER else attention_by_row
        return stock(queries, pool, packing, manner)

    def rotate(
        self,
        projected: mx.array,
        turns: mx.array,
        norms: Norms | None,
        layout: Layout,
        pool: LayerPool,
        places: Places,
    ) -> mx.array:
        """As `rotary.rotate`."""
        if pool.launch and self.winners.get(rotary_key(layout, projected.dtype), STOCK) == KERNEL:
            return rotate_by_kernel(projected, turns, norms, layout, pool, places)
        return rotate(projected, turns, norms, layout, pool, places)

    def add_norm(self, x: mx.array, y: mx.array, weight: mx.array, epsilon: float) -> tuple[mx.array, mx.array]:
        """As `add_norm.add_norm`."""
        if self.winners.get(norm_key(x.shape[1], x.dtype), STOCK) == KERNEL:
            return add_norm_by_kernel(x, y, weight, epsilon, self.launch)
        return add_norm(x, y, weight, epsilon)

    def gated_delta(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        decay: mx.array,
        beta: mx.array,
        state: mx.array,
        tape: Tape,
        steps: Steps,
    ) -> tuple[mx.array, mx.array, Tape]:
        """As `gated_delta.gated_delta`."""
        if self.winners.get(recurrence_key("gated delta", k.shape[1:], v.shape[1:], k.dtype, steps), STOCK) == KERNEL:
            return gated_delta_by_kernel(q, k, v, decay, beta, state, tape, steps, self.launch)
        return gated_delta(q, k, v, decay, beta, state, tape, steps)

    def convolved_heads(self, x: mx.array, weight: mx.array, inputs: mx.array, steps: Steps, heads: Heads) -> Convolved:
        """As `convolution.convolved_heads`."""
        key = recurrence_key("convolution", weight.shape, heads, x.dtype, steps)
        if self.winners.get(key, STOCK) == KERNEL and x.shape[1] % 4 == 0:
            return convolved_heads_by_kernel(x, weight, inputs, steps, heads, self.launch)
        return convolved_heads(x, weight, inputs, steps, heads)

    def gated_convolution(
        self, x: mx.array, weight: mx.array, bias: mx.array | None, inputs: mx.array, steps: Steps
    ) -> tuple[mx.array, mx.array]:
        """As `convolution.gated_convolution`. The kernel knows of no bias, which no published model has."""
        key = recurrence_key("gated convolution", weight.shape, (), x.dtype, steps)
        if self.winners.get(key, STOCK) == KERNEL and bias is None:
            return gated_convolution_by_kernel(x, weight, inputs, steps, self.launch)
        return gated_convolution(x, weight, bias, inputs, steps)

    def quantized_matmul(self, x: mx.array, weight: Weight) -> mx.array:
        """As `quantized_matmul.quantized_matmul`."""
        rows, length = x.shape
        key = product_key(rows, length, weight.lines, weight.quantisation, x.dtype)
        tiling = TILINGS.get(self.winners.get(key, STOCK))
        if tiling and weight.quantisation.known:
            return quantized_matmul_by_kernel(x, weight, tiling, self.launch)
        return quantized_matmul(x, weight)

    def add_low_rank(self, y: mx.array, x: mx.array, layer: LowRank, chosen: Chosen) -> mx.array:
        """As `low_rank.add_low_rank`."""
        (tokens, length), lines = x.shape, y.shape[1]
        form = self.winners.get(low_rank_key(tokens, length, lines, len(layer.owners), x.dtype), STOCK)
        if form == KERNEL and low_rank_fits(x, layer):  # layers of one key may share their ranks out otherwise
            return add_low_rank_by_kernel(y, x, layer, chosen, self.launch)
        return add_low_rank(y, x, layer, chosen)

    def experts(self, x: mx.array, chosen: mx.array, through: Through, kind: ExpertsKind) -> mx.array:
        """As `experts.experts`, of experts of this kind."""
        tokens, each = chosen.shape
        form = self.winners.get(experts_key(tokens, each, kind, x.dtype), STOCK)
        tiling = TILINGS.get(form)
        if tiling and kind.quantisation.known and chosen.size <= ROOM:
            return experts_by_kernel(x, chosen, through, tiling, kind.experts, self.launch)
        return (experts_in_other_order if form == OTHER_ORDER else experts)(x, chosen, through)

    def choose(self, logits: mx.array, settings: Sequence[Setting], positions: mx.array) -> mx.array:
        """As `choose.choose`."""
        slots, vocabulary = logits.shape
        drawn = any(setting.inverse > 0 for setting in settings)
        if self.winners.get(choice_key(slots, vocabulary, logits.dtype, drawn), STOCK) == KERNEL:
            return choose_by_kernel(logits, settings, positions, self.launch)
        return choose(logits, settings, positions)

    def bytes_to_choose(self, slots: int, vocabulary: int, dtype: mx.Dtype) -> int:
        """Memory that `choose` takes beside logits [slots, vocabulary] if all of these slots draw."""
        if self.winners.get(choice_key(slots, vocabulary, dtype, True), STOCK) == KERNEL:
            return 0  # but for a few numbers a slot
        return workspace(slots, vocabulary)
