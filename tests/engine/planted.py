"""Faults to plant in a sound engine, as bugs of a backend or of a kernel would cause them."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import mlx.core as mx

from draftmill.engine.bench.arms import EngineSession
from draftmill.engine.bench.synthetic import Synthetic
from draftmill.engine.models.targets.transformer import Transformer
from draftmill.kernels.attention.manner import Manner
from draftmill.kernels.operations import Operations
from draftmill.kernels.packing import Packing
from draftmill.kernels.pages.places import Places, tabled
from draftmill.kernels.pages.pool import LayerPool

Turns = Callable[[mx.array], dict[Hashable, mx.array]]


def one_place(target: Transformer) -> Turns:
    """Rotations of which one token's wins for all tokens of a round, as they were on CUDA."""
    sound = target.turns
    return lambda positions: {k: mx.repeat(turns[-1:], positions.size, axis=0) for k, turns in sound(positions).items()}


def ahead(target: Transformer, least: int = 4) -> Turns:
    """Rotations that are one position too far for tokens from position `least` on."""
    sound = target.turns
    return lambda positions: sound(mx.where(positions >= least, positions + 1, positions))


@dataclass(frozen=True)
class ShiftedMask(Operations):
    """Attention in which each token sees `by` keys too many, or too few."""

    by: int = 1

    def attention(self, queries: mx.array, pool: LayerPool, packing: Packing, manner: Manner) -> mx.array:
        spans = tuple(replace(span, exact=False) for span in packing.spans)
        shifted = replace(packing, spans=spans).limited(mx.maximum(packing.seen + self.by, 0))
        return super().attention(queries, pool, shifted, manner)


def open_session(bench: Synthetic, rows: int, context: int, seed: int) -> EngineSession:
    """Rows that have been prefilled and decode with whole blocks of drafts, of which a part is right."""
    requests = bench.rows(rows, context, 96, (4,), 1, seed)
    continuation = bench.continuation(requests, (4,))
    return EngineSession(bench.engine(rows, context + 1024, continuation, bench.block - 1), requests)


def spoil(session: EngineSession, draw: random.Random) -> None:
    """Let one slot of a row's prompt hold the key or the value that another one holds, in one layer."""
    pool, row = session.engine.state.pool, draw.choice(session.rows)
    one, other = draw.sample(range(len(row.request.tokens)), 2)
    table, _ = tabled([row.pages])
    layer, start = draw.choice(pool.layers), mx.zeros(1, mx.int32)
    here, there = (Places(table, start, mx.array([position], mx.int32)) for position in (one, other))
    own, others = (
        [mx.contiguous(array[place.slots]) for array in (layer.keys, layer.values)] for place in (here, there)
    )
    kind = draw.randrange(2)
    own[kind] = others[kind]
    layer.write(here, *own)
