"""What raced shapes and forms are called: the key of an operation at a shape, and the names of its forms."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import mlx.core as mx

from ..fused.rotary import Layout
from ..packing import FEW, Packing
from ..products.quantisation import Quantisation
from ..recurrent.plan import Steps

Key = tuple[str | int, ...]

STOCK, TOGETHER, KERNEL, OTHER_ORDER = "stock", "stock, together", "kernel", "other order"
"""Names of forms. Every operation has a stock one, which runs where nothing else has won a race. Products have more
(`products.tiling`).
"""


MOST_TOKENS = 96
"""Of a product that is raced: more, as of prompts, are left to stock."""


def attention_key(queries: mx.array, kv_heads: int, packing: Packing, sinks: bool, capped: bool) -> Key:
    """The raced shape that stands for a call: heads, their size, type; whether there are sinks, and scores are capped;
    then rows, queries of each, keys of each.
    """
    heads, dim = queries.shape[1:]
    manner = *(("sinks",) if sinks else ()), *(("capped",) if capped else ())
    return ("attention", heads, kv_heads, dim, _name(queries.dtype), *manner, *packing.kind)


def rotary_key(layout: Layout, dtype: mx.Dtype) -> Key:
    """Likewise: heads, their size, how much of it turns, from one head to the next, what is normed, type; how pairs
    lie, and whether keys are values, too.
    """
    normed = "normed" if layout.epsilon is not None else "plain"
    heads = layout.heads, layout.kv_heads, layout.dim, layout.rotated, layout.step
    more = ("neighbours", layout.neighbours), ("values", layout.values_normed), ("keys", layout.keys_as_values)
    return ("rotary", *heads, *(name for name, given in more if given), normed, _name(dtype))


def norm_key(size: int, dtype: mx.Dtype) -> Key:
    """Likewise: size and type."""
    return ("add norm", size, _name(dtype))


def recurrence_key(
    operation: str, shape: tuple[int, ...], other: tuple[int, ...], dtype: mx.Dtype, steps: Steps
) -> Key:
    """Likewise, for an operation of recurrent layers: shapes of what it reads without the tokens, type, steps a row."""
    return (operation, *shape, *other, _name(dtype), 16 if steps.seats[0].count <= FEW else 256)


@lru_cache(4096)
def product_key(rows: int, length: int, lines: int, quantisation: Quantisation, dtype: mx.Dtype) -> Key:
    """Likewise, for a product of so many rows with a weight of `lines` of `length`.

    One row is left to stock.
    """
    nearest = ((0, 1), (4, 5), (8, 12), (16, 24), (32, 48), (64, MOST_TOKENS))
    raced = next((raced for raced, most in nearest if rows <= most), 0)
    return ("quantised product", length, lines, *quantisation, _name(dtype), raced)


class ExpertsKind(NamedTuple):
    """Gated experts: what tokens have outside and inside, how many experts there are, and how they are quantised."""

    length: int
    inside: int
    experts: int
    quantisation: Quantisation


def experts_key(tokens: int, chosen: int, kind: ExpertsKind, dtype: mx.Dtype) -> Key:
    """Likewise, for so many tokens through experts: their kind, how many a token chose, type, tokens.

    With fewer tokens than the raced ones there is little to sort, and with more, as of prompts, mlx-lm's order stays.
    """
    raced = next((raced for raced, most in ((0, 7), (16, 24), (64, MOST_TOKENS)) if tokens <= most), 0)
    return ("experts", *kind[:3], *kind.quantisation, chosen, _name(dtype), raced)


def low_rank_key(tokens: int, length: int, lines: int, ranks: int, dtype: mx.Dtype) -> Key:
    """Likewise, for what adapters of so many ranks in all add to so many tokens in a layer of `lines` of `length`."""
    raced = next((raced for raced, most in ((8, 12), (32, 48), (96, MOST_TOKENS)) if tokens <= most), 0)
    return ("adapters", length, lines, ranks, _name(dtype), raced)


def choice_key(slots: int, vocabulary: int, dtype: mx.Dtype, drawn: bool) -> Key:
    """Likewise, for logits of so many slots: vocabulary, type, whether some slots draw, slots.

    Draws are raced with few slots only: with many, their stock form would take seconds.
    """
    return ("choose", vocabulary, _name(dtype), *(("drawn", 16) if drawn else ("greedy", 16 if slots <= 64 else 512)))


@cache
def _name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]
