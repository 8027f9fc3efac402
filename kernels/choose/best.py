"""The largest of each row of logits, without a sort of the row."""

from __future__ import annotations

import mlx.core as mx

CHUNK = 128
"""Logits of which the largest one is found first. Of 250,000 logits and 16 wanted ones, about 2,000 maxima and then
about 2,000 logits are partitioned.
"""


def best(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The `count` largest of each row of logits [M, V], in no order: their tokens [M, count] int32 and logits.

    Rows are read once, for the maxima of chunks: the largest logits lie in the chunks with the largest maxima, so no
    others are looked at. MLX's partition of whole rows would be a full sort on a GPU.
    """
    rows, vocabulary = logits.shape
    if vocabulary <= count * CHUNK:
        tokens = _largest(logits, count)
        return tokens.astype(mx.int32), mx.take_along_axis(logits, tokens, axis=-1)
    missing = -vocabulary % CHUNK
    padded = mx.pad(logits, [(0, 0), (0, missing)], constant_values=-mx.inf) if missing else logits
    chunks = padded.reshape(rows, -1, CHUNK)
    chosen = _largest(chunks.max(axis=-1), count)  # [M, count]
    few = mx.take_along_axis(chunks, chosen[..., None], axis=1).reshape(rows, -1)  # [M, count * CHUNK]
    places = _largest(few, count)
    tokens = mx.take_along_axis(chosen, places // CHUNK, axis=-1) * CHUNK + places % CHUNK
    # Where fewer logits than wanted are above minus infinity, padding may be among them: any token does in its stead.
    return mx.minimum(tokens.astype(mx.int32), vocabulary - 1), mx.take_along_axis(few, places, axis=-1)


def _largest(x: mx.array, count: int) -> mx.array:
    """Where the `count` largest of each row of x [M, N] are."""
    return mx.argpartition(x, -count, axis=-1)[:, -count:]
