"""Log-probabilities: of the tokens that were chosen and of the likeliest ones, as the target has them unchanged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..request import TokenLogprob
from .change import at_once

BLOCK = 256
"""The likeliest k tokens lie in the k blocks of so many whose likeliest ones are the likeliest."""


@dataclass(frozen=True)
class Logprobs:
    """Of slots [P], on the device: the tokens [P] that were chosen and theirs [P], the likeliest [P, K] and theirs."""

    chosen: mx.array
    own: mx.array
    likeliest: mx.array
    theirs: mx.array

    @property
    def arrays(self) -> list[mx.array]:
        return [self.chosen, self.own, self.likeliest, self.theirs]

    def listed(self, most: Iterable[int | None]) -> list[TokenLogprob]:
        """On the host, with so many of the likeliest tokens of each slot [P]; slots with None are left out."""
        rows: Any = zip(most, *(array.tolist() for array in self.arrays), strict=True)
        return [
            TokenLogprob(chosen, own, tuple(zip(likeliest[:count], theirs[:count], strict=True)))
            for count, chosen, own, likeliest, theirs in rows
            if count is not None
        ]


def logprobs(logits: mx.array, slots: list[int], chosen: mx.array, most: int) -> Logprobs:
    """Of tokens chosen [P] at these slots [P] of logits [S, vocabulary], and of the `most` likeliest there.

    Slots are worked on in portions, as in `choose_changed`.
    """
    step = at_once(len(slots), logits.shape[-1])
    parts: list[Logprobs] = []
    before = chosen  # and whatever that took
    for begin in range(0, len(slots), step):
        rows = mx.array(slots[begin : begin + step])
        logits = mx.depends([logits], [before])[0]
        parts.append(_logprobs(logits[rows].astype(mx.float32), chosen[begin : begin + step], most))
        before = parts[-1].theirs
    if len(parts) == 1:
        return parts[0]
    return Logprobs(*(mx.concatenate(list(x)) for x in zip(*(part.arrays for part in parts), strict=True)))


def _logprobs(logits: mx.array, chosen: mx.array, most: int) -> Logprobs:
    total = mx.logsumexp(logits, axis=-1, keepdims=True)
    own = mx.take_along_axis(logits, chosen[:, None], axis=-1) - total
    likeliest = _likeliest(logits, min(most, logits.shape[-1]))
    return Logprobs(chosen, own[:, 0], likeliest, mx.take_along_axis(logits, likeliest, axis=-1) - total)


def _likeliest(logits: mx.array, count: int) -> mx.array:
    """The `count` likeliest tokens of each row of logits [P, vocabulary], best first; int32 [P, count].

    Sorting a whole vocabulary would take far longer than finding the largest logit of each block.
    """
    slots, vocabulary = logits.shape
    padded = mx.pad(logits, [(0, 0), (0, -vocabulary % BLOCK)], constant_values=-mx.inf).reshape(slots, -1, BLOCK)
    blocks = mx.sort(mx.argsort(-padded.max(axis=-1), axis=-1)[:, :count], axis=-1).astype(mx.int32)  # [P, blocks]
    some = mx.take_along_axis(padded, blocks[:, :, None], axis=1).reshape(slots, -1)
    places = mx.argsort(-some, axis=-1)[:, :count].astype(mx.int32)
    return mx.take_along_axis(blocks, places // BLOCK, axis=-1) * BLOCK + places % BLOCK
