"""Ragged attention by our own kernel: all rows in one launch, each over its own pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..gpu.cores import splits, wave
from ..gpu.launch import CONSTANT_SIZE, TYPES, numbers, real, reals
from ..gpu.source import read_kernels
from ..packing import Packing
from ..pages.pool import WORD, LayerPool
from ..pages.sizes import PAGE
from .manner import Manner

SOURCE = Path(__file__).with_suffix(".metal")
ATTEND, COMBINE = (read_kernels(SOURCE)[name] for name in ("attend", "combine"))

PAIRS = {64: (32,), 128: (16, 32), 256: (16,), 512: (16,)}
"""Head dimensions, and how many pairs of query and head a threadgroup can take: its memory sets the most, and with 512
its registers, which hold the sums.
"""

THREADS = 128

HELD = {2048: 4, 4096: 3, 8192: 2}
"""Threadgroups that a core holds at once, by PAIRS times D: on an NVIDIA GPU, registers leave no room for more. The
last number follows from the registers that a thread takes, not from times. What a Mac's core holds has not been
measured, so these numbers stand for it, too.
"""

LEAST_KEYS = 128
"""Keys are not split into smaller parts than this."""

STEP = 2
"""How many fours of a key are scored at a time: with more, some variants need more registers than there are."""


def fits(queries: mx.array, pool: LayerPool) -> bool:
    """Whether the kernel is made for the shapes and types of these, and for such a pool."""
    heads, dim = queries.shape[1:]
    made = queries.dtype in TYPES and dim in PAIRS and heads // pool.heads <= PAIRS[dim][-1]
    return made and pool.launch is not None


def ragged_attention(queries: mx.array, pool: LayerPool, packing: Packing, manner: Manner) -> mx.array:
    """As `stock_attention.attention_by_row`, of what `fits`."""
    assert pool.launch
    (count, heads, dim), dtype, launch = queries.shape, queries.dtype, pool.launch
    scale, window, sinks, cap = manner.scale, manner.window, manner.sinks, manner.cap
    key = (heads, pool.heads, dim, dtype, window)
    if key not in packing.kept:
        packing.kept[key] = _tiling(queries, pool.heads, packing, window)
    tiling: Tiling = packing.kept[key]
    inputs = [queries, *pool.memory, pool.after, packing.places.table, tiling.tiles, packing.sees(window)]
    inputs += [real(scale) if cap is None else reals(scale, cap), queries if sinks is None else _long_enough(sinks)]
    constants = tiling.constants | {"SINKS": sinks is not None, "CAPPED": cap is not None}
    if tiling.splits == 1:
        made = [((count, heads, dim), dtype), ((1,), mx.float32)]
        outputs, _ = launch(ATTEND, inputs, constants, tiling.groups, THREADS, made)
        return outputs.reshape(count, -1)
    made = [((count, heads, tiling.splits, width), mx.float32) for width in (dim, 2)]
    sums, shares = launch(ATTEND, inputs, constants, tiling.groups, THREADS, made)
    inputs = [sums, shares, numbers(count * heads, tiling.splits)]
    made = [((count, heads, dim), dtype)]
    (outputs,) = launch(COMBINE, inputs, {"T": dtype, "D": dim}, (-(-count * heads // 4), 1, 1), THREADS, made)
    return outputs.reshape(count, -1)


def _long_enough(sinks: mx.array) -> mx.array:
    """Sinks [heads] so long that Metal keeps them where it keeps other inputs."""
    lacking = CONSTANT_SIZE - sinks.size
    return mx.pad(sinks, (0, lacking)) if lacking > 0 else sinks


@dataclass(frozen=True)
class Tiling:
    """How a packing is launched: the same for all layers with one kind of heads."""

    tiles: mx.array
    splits: int
    groups: tuple[int, int, int]
    constants: dict[str, int | bool | mx.Dtype]


def _tiling(queries: mx.array, kv_heads: int, packing: Packing, window: int | None) -> Tiling:
    (_, heads, dim), dtype = queries.shape, queries.dtype
    group = heads // kv_heads
    most = max(span.count for span in packing.spans) * group
    pairs = next((pairs for pairs in PAIRS[dim] if pairs >= max(most, group)), PAIRS[dim][-1])
    count, tiles = packing.tiles(pairs // group)
    longest = max(min(span.length, span.count + (window or span.length)) for span in packing.spans)
    parts = splits(count * kv_heads, longest // LEAST_KEYS, wave(HELD[pairs * dim]))
    constants = {"T": dtype, "D": dim, "HEADS": heads, "KV_HEADS": kv_heads, "THREADS": THREADS, "PAIRS": pairs}
    constants |= {"W": WORD, "PAGE": PAGE, "STEP": STEP}
    split = {"OUT": dtype if parts == 1 else mx.float32, "SPLIT": parts > 1}
    return Tiling(tiles, parts, (count, kv_heads, parts), constants | split)
