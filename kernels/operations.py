"""The operations of the engine, each in the form that is best on this machine: plain MLX, or a kernel of our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import mlx.core as mx

from .attention.ragged_attention import ragged_attention
from .attention.stock_attention import attention_by_row, attention_together
from .fused.add_norm import add_norm, add_norm_by_kernel
from .fused.rotary import Layout, Norms, rotate, rotate_by_kernel
from .gpu.launch import on_gpu
from .gpu.source import Launch
from .packing import FEW, Packing
from .products.quantized_matmul import quantized_matmul, quantized_matmul_by_kernel
from .products.quantized_matmul_simdgroup import quantized_matmul_by_simdgroups
from .race.race import Key
from .recurrent.convolution import Convolved, Heads, convolved_heads
from .recurrent.gated_delta import Tape, gated_delta
from .recurrent.plan import Steps
from .recurrent.recurrence import convolved_heads_by_kernel, gated_delta_by_kernel

STOCK, TOGETHER, KERNEL, SIMDGROUPS = "stock", "stock, together", "kernel", "simdgroups"
"""Names of forms. Every operation has a stock one, which runs where nothing else has won a race."""


@dataclass(frozen=True)
class Operations:
    """What happens to tokens between and around their linear layers, and the quantised products of these.

    `winners` name the form of an operation at the shapes that were raced (`race`); other shapes take those of the
    nearest one, and without a race everything is stock. `launch` runs kernels.
    """

    winners: Mapping[Key, str] = field(default_factory=dict)
    launch: Launch = on_gpu

    def attention(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        packing: Packing,
        scale: float,
        window: int | None = None,
    ) -> mx.array:
        """Attention of packed queries [N, H, D] over pools [slots, KV, D]; returns [N, H * D].

        Rows that decode and rows that prefill may take different forms.
        """
        if packing.halves is None:
            return self._attention(queries, keys, values, packing, scale, window)
        halves = [
            self._attention(queries[tokens], keys, values, half, scale, window) for half, tokens in packing.halves
        ]
        return mx.concatenate(halves)[packing.order]

    def _attention(
        self, queries: mx.array, keys: mx.array, values: mx.array, packing: Packing, scale: float, window: int | None
    ) -> mx.array:
        heads = ("form", queries.shape[1:], keys.shape[1], queries.dtype)
        form = packing.plans.get(heads)
        if form is None:
            form = self.winners.get(attention_key(queries, keys, packing), STOCK)
            packing.plans[heads] = form
        if form == KERNEL:
            return ragged_attention(queries, keys, values, packing, scale, window, self.launch)
        stock = attention_together if form == TOGETHER else attention_by_row
        return stock(queries, keys, values, packing, scale, window)

    def rotate(
        self, projected: mx.array, turns: mx.array, norms: Norms | None, layout: Layout
    ) -> tuple[mx.array, mx.array]:
        """As `rotary.rotate`."""
        if self.winners.get(rotary_key(layout, projected.dtype), STOCK) == KERNEL:
            return rotate_by_kernel(projected, turns, norms, layout, self.launch)
        return rotate(projected, turns, norms, layout)

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

    def quantized_matmul(
        self, x: mx.array, w: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int
    ) -> mx.array:
        """As `quantized_matmul.quantized_matmul`."""
        form = self.winners.get(product_key(x, w, group_size, bits), STOCK)
        if form == KERNEL:
            return quantized_matmul_by_kernel(x, w, scales, biases, group_size, bits, self.launch)
        if form == SIMDGROUPS:
            return quantized_matmul_by_simdgroups(x, w, scales, biases, group_size, bits, self.launch)
        return quantized_matmul(x, w, scales, biases, group_size, bits)


def attention_key(queries: mx.array, keys: mx.array, packing: Packing) -> Key:
    """The raced shape that stands for a call: heads, their size, type; then rows, queries of each, keys of each."""
    (heads, dim), kv_heads = queries.shape[1:], keys.shape[1]
    return ("attention", heads, kv_heads, dim, _name(queries.dtype), *packing.kind)


def rotary_key(layout: Layout, dtype: mx.Dtype) -> Key:
    """Likewise: heads, their size, how much of it turns, from one head to the next, whether normed, type."""
    normed = "normed" if layout.epsilon is not None else "plain"
    heads = layout.heads, layout.kv_heads, layout.dim, layout.rotated, layout.step
    return ("rotary", *heads, normed, _name(dtype))


def norm_key(size: int, dtype: mx.Dtype) -> Key:
    """Likewise: size and type."""
    return ("add norm", size, _name(dtype))


def recurrence_key(
    operation: str, shape: tuple[int, ...], other: tuple[int, ...], dtype: mx.Dtype, steps: Steps
) -> Key:
    """Likewise, for an operation of recurrent layers: shapes of what it reads without the tokens, type, steps a row."""
    return (operation, *shape, *other, _name(dtype), 16 if steps.seats[0].count <= FEW else 256)


def product_key(x: mx.array, w: mx.array, group_size: int, bits: int) -> Key:
    """Likewise, for a product of x [N, K] with a weight of so many lines; one row is left to stock."""
    rows = next((rows for rows, most in ((1, 1), (4, 5), (16, 24)) if x.shape[0] <= most), 64)
    return ("quantised product", x.shape[1], w.shape[0], bits, group_size, _name(x.dtype), rows)


@cache
def _name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]
