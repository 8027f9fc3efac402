"""Queries, keys and values out of a joint projection: normed where the model norms them, rotated to their positions,
and keys and values kept in a pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..gpu.launch import CONSTANT_SIZE, TYPES, numbers, real
from ..gpu.source import read_kernels
from ..pages.places import Places
from ..pages.pool import WORD, LayerPool
from ..pages.sizes import PAGE

SOURCE = Path(__file__).with_suffix(".metal")
KERNEL = read_kernels(SOURCE)["rotate"]
THREADS = 128


@dataclass(frozen=True)
class Layout:
    """What a token's projection holds: `heads` of queries, `stride` apart, then `kv_heads` of keys, then values.

    The first `rotated` of a head's `dim` dimensions turn, in pairs half of them apart, or of `neighbours`. Queries and
    keys are normed with `epsilon`, if that is not None; with `values_normed` values are, too, without weights. With
    `keys_as_values` there are no values: they are the keys as they come. Without `kv_heads` there are only queries.
    """

    heads: int
    kv_heads: int
    dim: int
    rotated: int
    epsilon: float | None = None
    stride: int = 0
    neighbours: bool = False
    values_normed: bool = False
    keys_as_values: bool = False

    @property
    def step(self) -> int:
        """Elements from one head of queries to the next."""
        return self.stride or self.dim

    @property
    def keys(self) -> int:
        """Where the keys begin."""
        return self.heads * self.step

    @property
    def values(self) -> int:
        """Where the values begin."""
        return self.keys if self.keys_as_values else self.keys + self.kv_heads * self.dim

    @property
    def width(self) -> int:
        return self.values + self.kv_heads * self.dim


Norms = tuple[mx.array, mx.array]
"""Weights [dim] of the norms of queries and of keys."""


def fits(layout: Layout, dtype: mx.Dtype) -> bool:
    """Whether the kernel is made for such heads and this type."""
    return layout.dim % 32 == 0 and layout.rotated % 64 == 0 and not layout.neighbours and dtype in TYPES


def split(
    projected: mx.array, turns: mx.array, norms: Norms | None, layout: Layout
) -> tuple[mx.array, mx.array, mx.array]:
    """Queries [N, H, D], keys and values [N, KV, D] of projected [N, width] tokens. The reference.

    Args:
        turns: cosines and sines of each token's position [N, 2, rotated / 2] float32.
        norms: given if the layout has an epsilon.
    """
    heads = projected.shape[0], layout.kv_heads, layout.dim
    ends = [layout.keys] if layout.keys_as_values else [layout.keys, layout.values]
    asking, *kept = mx.split(projected, ends, axis=1)
    keys, values = kept[0].reshape(heads), kept[-1].reshape(heads)
    if layout.epsilon is not None and norms:
        keys = mx.fast.rms_norm(keys, norms[1], layout.epsilon)
    if layout.epsilon is not None and layout.values_normed:
        values = mx.fast.rms_norm(values, None, layout.epsilon)
    both = mx.concatenate([_normed(asking, norms, layout), keys], axis=1)  # turned at once: half as many operations
    queries, keys = mx.split(_turned(both, turns, layout), [layout.heads], axis=1)
    return queries, keys, values


def asked(projected: mx.array, turns: mx.array, norms: Norms | None, layout: Layout) -> mx.array:
    """The queries of `split`."""
    return _turned(_normed(projected[:, : layout.keys], norms, layout), turns, layout)


def rotate(
    projected: mx.array, turns: mx.array, norms: Norms | None, layout: Layout, pool: LayerPool, places: Places
) -> mx.array:
    """Queries by `split`; keys and values go into the pool."""
    if not layout.kv_heads:
        return asked(projected, turns, norms, layout)
    queries, keys, values = split(projected, turns, norms, layout)
    pool.write(places, keys, values)
    return queries


def rotate_by_kernel(
    projected: mx.array, turns: mx.array, norms: Norms | None, layout: Layout, pool: LayerPool, places: Places
) -> mx.array:
    """As `rotate`, of a layout that `fits`, into a pool that kernels write."""
    assert pool.launch
    count, dtype = projected.shape[0], projected.dtype
    query_weight, key_weight = norms or (projected, projected)  # something of its type: only NORMED reads weights
    constants = {
        "T": dtype,
        "W": WORD,
        "HEADS": layout.heads,
        "KV_HEADS": layout.kv_heads,
        "DIM": layout.dim,
        "STRIDE": layout.step,
        "WIDTH": layout.width,
        "VALUES": layout.values,
        "ROTATED": layout.rotated,
        "NORMED": norms is not None,
        "VALUES_NORMED": layout.values_normed,
        "PAGE": PAGE,
    }
    inputs = [projected, turns, query_weight, key_weight, real(layout.epsilon or 0.0), *pool.memory]
    inputs += [*places.arrays, numbers(count), pool.after]
    queries, pool.after = pool.launch(
        KERNEL,
        inputs,
        constants,
        (-(-count * (layout.heads + 2 * layout.kv_heads) * 32 // THREADS), 1, 1),
        THREADS,
        [((count, layout.heads, layout.dim), dtype), ((CONSTANT_SIZE,), mx.float32)],
    )
    return queries


def _normed(asking: mx.array, norms: Norms | None, layout: Layout) -> mx.array:
    """Queries [N, H, D] out of their part of a projection [N, H * step], normed if they are."""
    queries = asking.reshape(asking.shape[0], layout.heads, -1)[..., : layout.dim]
    if layout.epsilon is None or not norms:
        return queries
    return mx.fast.rms_norm(queries, norms[0], layout.epsilon)


@mx.compile
def _rotated(a: mx.array, b: mx.array, turns: mx.array) -> tuple[mx.array, mx.array]:
    cosine, sine = turns[:, :1], turns[:, 1:]  # [N, 1, rotated / 2]
    x, y = a.astype(mx.float32), b.astype(mx.float32)
    return (x * cosine - y * sine).astype(a.dtype), (x * sine + y * cosine).astype(a.dtype)


def _turned(heads: mx.array, turns: mx.array, layout: Layout) -> mx.array:
    rotated, half = layout.rotated, layout.rotated // 2
    if layout.neighbours:
        turned = _rotated(heads[..., 0:rotated:2], heads[..., 1:rotated:2], turns)
        return mx.concatenate([mx.stack([*turned], axis=-1).flatten(-2), heads[..., rotated:]], axis=-1)
    ends = [half] if rotated == layout.dim else [half, rotated]
    first, second, *rest = mx.split(heads, ends, axis=-1)
    return mx.concatenate([*_rotated(first, second, turns), *rest], axis=-1)
