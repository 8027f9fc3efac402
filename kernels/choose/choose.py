"""The token that each row of logits chooses: the likeliest, or a draw after temperature, min-p, top-k and top-p.

Min-p keeps the tokens that have so large a share of the likeliest one's probability, top-k the k of these that rank
first, top-p as many of what is left as it takes to weigh its share of it. All look at probabilities after temperature,
in this order, which is vLLM's. Larger logits rank first, of equal ones those with smaller indices. In half precision
ties are common, so ranks matter. Min-p keeps all of equal ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import log
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from ..gpu.launch import CONSTANT_SIZE, TYPES, on_gpu
from ..gpu.source import Launch, read_kernels
from .cut import KEY_BITS, top_k, top_p
from .noise import gumbel

SOURCE = Path(__file__).with_suffix(".metal")
KERNEL = read_kernels(SOURCE)["choose"]
THREADS = 512
MOST_TOKENS = 1 << 24
"""The kernel counts tokens in float32."""

LOWEST = -3.40282347e38
"""The lowest number of float32."""

WORKSPACE = 1 << 28
"""Bytes that plain MLX may take to draw, or those of a single row if these are more."""

BYTES_PER_LOGIT = 48
"""What plain MLX takes at most to draw from one logit: measured on a CPU, 46 with top-p, 38 with top-k alone, 30 with
neither."""


class Setting(NamedTuple):
    """How a row chooses: `inverse` is 1 / temperature, or 0 if it takes the likeliest token; `top_p` is above 0, and
    keeps all if it is 1; `top_k` and `min_p` keep all if they are 0; `seed` is below 2**32.
    """

    inverse: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    min_p: float = 0.0

    @property
    def bar(self) -> float:
        """What a token must score to stay: its logit less the largest one, after temperature."""
        return log(self.min_p) if self.min_p > 0 else LOWEST


def fits(vocabulary: int, dtype: mx.Dtype) -> bool:
    """Whether the kernel is made for logits like these."""
    return dtype in TYPES and vocabulary < MOST_TOKENS


def workspace(slots: int, vocabulary: int) -> int:
    """Bytes that `choose` takes beside logits [slots, vocabulary] if all slots draw. The kernel takes none."""
    return _at_once(slots, vocabulary) * vocabulary * BYTES_PER_LOGIT


def choose(logits: mx.array, settings: Sequence[Setting], positions: mx.array) -> mx.array:
    """The token [M] int32 that each row of logits [M, vocabulary] chooses for its position [M], in plain MLX.

    A draw depends on the row's seed, the position and the logits, and on nothing else. A token whose logit is minus
    infinity is never drawn. Rows are drawn in portions, so that they take `workspace` at most.
    """
    tokens = mx.argmax(logits, axis=-1).astype(mx.int32)
    drawn = [m for m, setting in enumerate(settings) if setting.inverse > 0]
    step = _at_once(len(drawn), logits.shape[-1])
    for begin in range(0, len(drawn), max(1, step)):
        portion = drawn[begin : begin + step]
        rows = mx.array(portion)
        # What waits for the tokens before it does not take memory beside them.
        x, tokens = mx.depends([logits, tokens], [tokens])
        tokens[rows] = _draw(x[rows], [settings[m] for m in portion], positions[rows])
    return tokens


def choose_by_kernel(
    logits: mx.array, settings: Sequence[Setting], positions: mx.array, launch: Launch = on_gpu
) -> mx.array:
    """As `choose`, of logits that `fits`."""
    count, vocabulary = logits.shape
    # A few rows more in the small arrays, so that MLX keeps them all in one kind of memory.
    padding = [Setting()] * (CONSTANT_SIZE - count)
    rows = [*settings, *padding]
    (tokens,) = launch(
        KERNEL,
        [
            logits,
            mx.array(list(chain.from_iterable((row.inverse, row.top_p, row.bar) for row in rows)), mx.float32),
            mx.array(list(chain.from_iterable((row.top_k, row.seed) for row in rows)), mx.uint32),
            mx.pad(positions.astype(mx.int32), (0, len(padding))),
        ],
        {"T": logits.dtype, "VOCABULARY": vocabulary, "THREADS": THREADS},
        (count, 1, 1),
        THREADS,
        [((count,), mx.int32)],
    )
    return tokens


def _draw(logits: mx.array, settings: Sequence[Setting], positions: mx.array) -> mx.array:
    """Tokens [M] of logits [M, V], none of whose rows is greedy."""
    inverse, share = (mx.array([setting[i] for setting in settings], mx.float32)[:, None] for i in (0, 1))
    vocabulary, bits = logits.shape[-1], KEY_BITS[logits.dtype]
    x = logits.astype(mx.float32)
    # Where all logits are minus infinity, the difference of two is no number.
    scores = (x - mx.maximum(x.max(axis=-1, keepdims=True), mx.finfo(mx.float32).min)) * inverse
    stay = x > -mx.inf
    if any(setting.min_p > 0 for setting in settings):
        stay = stay & (scores >= mx.array([setting.bar for setting in settings], mx.float32)[:, None])
    if any(0 < setting.top_k < vocabulary for setting in settings):
        most = [min(setting.top_k or vocabulary, vocabulary) for setting in settings]
        stay = stay & top_k(x, mx.array(most, mx.int32)[:, None], bits)
    if any(setting.top_p < 1 for setting in settings):
        stay = stay & top_p(x, mx.where(stay, mx.exp(scores), 0), share, bits)
    noise = gumbel(mx.array([setting.seed for setting in settings], mx.uint32), positions, vocabulary)
    return mx.argmax(mx.where(stay, scores + noise, -mx.inf), axis=-1).astype(mx.int32)


def _at_once(slots: int, vocabulary: int) -> int:
    """Rows that plain MLX draws together."""
    return min(slots, max(1, WORKSPACE // (vocabulary * BYTES_PER_LOGIT)))
