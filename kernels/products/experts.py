"""Tokens through the experts that they chose: by MLX's products, in one of two orders, or by a kernel.

Unsorted, each choice is a product of its own. Sorted by expert, the tokens of one expert lie side by side, so that its
weights may be read once for all of them; the price is two sorts and two gathers. The kernel takes tokens expert by
expert from where they lie, by a table that one launch makes for all products of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from ..gpu.launch import numbers, on_gpu
from ..gpu.source import Launch, read_kernels
from .quantisation import Weight
from .quantized_matmul import Routed, quantized_matmul_by_kernel
from .tiling import Tiling

SOURCE = Path(__file__).with_name("route.metal")
ROUTE = read_kernels(SOURCE)["route"]

MANY = 64
"""Choices from which on mlx-lm sorts them."""

ROOM, THREADS = 1024, 256
"""Choices that the kernel can put in order, and its threads."""

FEW = 8
"""Rows of a tile at most: an expert has few tokens, and what a tile has too many is work for nothing."""


class Layer(NamedTuple):
    """The weights of all experts [experts, O, K] of one layer, and what is added to their outputs [experts, O]."""

    weight: Weight | mx.array
    bias: mx.array | None = None


Product = Callable[[mx.array, Layer], mx.array]
"""Each choice's row, [..., K] of a layer's inputs, times the weight of its expert: [..., O]."""

Through = Callable[[mx.array, Product], mx.array]
"""All layers of experts, from tokens [..., K] on to [..., O]."""


def experts(x: mx.array, chosen: mx.array, through: Through) -> mx.array:
    """Tokens x [N, K] through the experts `chosen` [N, E] as mlx-lm orders them: [N, E, O]."""
    return by_expert(x, chosen, through) if chosen.size >= MANY else as_chosen(x, chosen, through)


def experts_in_other_order(x: mx.array, chosen: mx.array, through: Through) -> mx.array:
    """As `experts`, sorted where mlx-lm does not sort, and unsorted where it does."""
    return as_chosen(x, chosen, through) if chosen.size >= MANY else by_expert(x, chosen, through)


def as_chosen(x: mx.array, chosen: mx.array, through: Through) -> mx.array:
    """As `experts`, unsorted."""
    return through(mx.expand_dims(x, (-2, -3)), partial(_gathered, chosen, False)).squeeze(-2)


def by_expert(x: mx.array, chosen: mx.array, through: Through) -> mx.array:
    """As `experts`, sorted."""
    flat = chosen.flatten()
    order = mx.argsort(flat)
    product = partial(_gathered, flat[order], True)
    outputs = through(x[order // chosen.shape[1]][:, None], product)  # [N * E, 1, O]
    return outputs[mx.argsort(order)].reshape(*chosen.shape, -1)


def _gathered(chosen: mx.array, ascending: bool, x: mx.array, layer: Layer) -> mx.array:
    if isinstance(layer.weight, Weight):
        packed, scales, biases, quantisation = layer.weight
        indices = dict(rhs_indices=chosen, sorted_indices=ascending)
        y = mx.gather_qmm(x, packed, scales, biases, transpose=True, **indices, **quantisation._asdict())
    else:
        weight = layer.weight.swapaxes(-1, -2)
        y = mx.gather_mm(laid_apart(x), weight, rhs_indices=chosen, sorted_indices=ascending)
    return y if layer.bias is None else y + mx.expand_dims(layer.bias[chosen], -2)


def laid_apart(x: mx.array) -> mx.array:
    """Rows x [..., 1, K] with a stride of K between them.

    A dimension of one that was put in has a stride of 1, and what is computed with such an array may have it as well.
    On CUDA MLX 0.32 takes the stride of this dimension for the distance of rows when it multiplies sorted ones, and is
    wrong then.
    """
    return mx.unflatten(x.flatten(0, -2), 0, x.shape[:-1])


def experts_by_kernel(
    x: mx.array, chosen: mx.array, through: Through, tiling: Tiling, count: int, launch: Launch = on_gpu
) -> mx.array:
    """As `experts`, which are `count`, of a quantisation that is known, and with `ROOM` choices at most."""
    flat = chosen.flatten()
    routed = route(flat, count, tiling.rows(FEW), launch)

    def product(x: mx.array, layer: Layer) -> mx.array:
        assert isinstance(layer.weight, Weight)
        share = flat.size // x.shape[0]  # a token's choices share its row, until each has one of its own
        y = quantized_matmul_by_kernel(x, layer.weight, tiling, launch, routed._replace(share=share))
        return y if layer.bias is None else y + layer.bias[flat]

    return through(x, product).reshape(*chosen.shape, -1)


def route(chosen: mx.array, experts: int, rows: int, launch: Launch = on_gpu) -> Routed:
    """In which order products take choices [N] of so many experts, in tiles of at most so many rows."""
    count = chosen.size
    tiles = (count + min(experts, count) * (rows - 1)) // rows  # there are no more, however they chose
    (table,) = launch(
        ROUTE,
        [chosen.astype(mx.uint32), numbers(count, tiles)],
        {"ROWS": rows, "ROOM": ROOM},
        (1, 1, 1),
        THREADS,
        [((count + 3 * tiles,), mx.int32)],
    )
    return Routed(table, tiles, rows, 1)
