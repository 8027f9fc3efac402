"""What a row changes in the target's logits before a token is chosen: biases, penalties, tokens that may not come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from ...kernels.choose.best import best
from ...kernels.operations import Operations
from ..request import Sampling
from .masks import masked
from .sampling import STOCK_OPERATIONS, choose

PORTION = 1 << 28
"""Bytes that changed logits may take at a time, or those of a single slot if these are more."""

BYTES_PER_LOGIT = 48
"""What one changed logit takes at most: measured on a CPU, 45 with all changes at once."""

GREEDY = Sampling()


@dataclass(frozen=True, eq=False)
class Change:
    """How one row changes its logits. They are float32 from then on, whatever the model's type.

    First comes `bias` [vocabulary] float32, minus infinity for tokens that may never come. Then, as in mlx-lm and vLLM,
    positive logits of tokens that have been before are divided by `repetition`, negative ones multiplied. Last,
    `presence` is subtracted from those of tokens that were generated, and `frequency` as often as they were.

    `history` [vocabulary] int32 has twice the number of times that a token was generated, and one more if it was in a
    prompt that counts. It ends with the row's anchor. None of the tokens `ends` may come before position `until`.
    """

    bias: mx.array | None = None
    history: mx.array | None = None
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    ends: tuple[int, ...] = ()
    until: int = 0


NOTHING = Change()


class Slot(NamedTuple):
    """What changes the logits of one slot: its row's `change`, to whose history those of the round's `drafts` come that
    stand before it; then the `mask` of what may come there.
    """

    change: Change | None = None
    drafts: range = range(0)
    mask: bytes | None = None


def choose_changed(
    logits: mx.array,
    samplings: Sequence[Sampling],
    positions: mx.array,
    slots: Sequence[Slot],
    drafts: mx.array | None,
    operations: Operations = STOCK_OPERATIONS,
) -> mx.array:
    """As `choose`, from logits [S, vocabulary] that the slots [S] change first; `drafts` [F] are the round's.

    No slots at all change nothing. Slots without a change cost what they cost alone; others are changed and chosen from
    in portions.
    """
    changing = [s for s, slot in enumerate(slots) if slot.change or slot.mask]
    if not changing:
        return choose(logits, samplings, positions, operations)
    tokens = mx.zeros(len(slots), mx.int32)
    if len(changing) < len(slots):
        others = [GREEDY if slot.change or slot.mask else own for slot, own in zip(slots, samplings, strict=True)]
        tokens = choose(logits, others, positions, operations)
    step = at_once(len(changing), logits.shape[-1])
    for begin in range(0, len(changing), step):
        portion = changing[begin : begin + step]
        rows = mx.array(portion)
        # What waits for the tokens before it does not take memory beside them.
        x, tokens = mx.depends([logits, tokens], [tokens])
        x = _changed(x[rows], [slots[s] for s in portion], positions[rows], drafts)
        tokens[rows] = choose(x, [samplings[s] for s in portion], positions[rows], operations)
    return tokens


def best_changed(logits: mx.array, positions: mx.array, slots: Sequence[Slot], count: int) -> tuple[mx.array, mx.array]:
    """The `count` likeliest tokens [S, count] of each slot, in no order, and their logits as slots change them."""
    tokens, values = best(logits, count)
    values = values.astype(mx.float32)
    changing = [s for s, slot in enumerate(slots) if slot.change or slot.mask]
    step = at_once(len(changing), logits.shape[-1])
    for begin in range(0, len(changing), step):
        portion = changing[begin : begin + step]
        rows = mx.array(portion)
        x, tokens = mx.depends([logits, tokens], [tokens])
        x = _changed(x[rows], [slots[s] for s in portion], positions[rows], None)
        tokens[rows], values[rows] = best(x, count)
    return tokens, values


def at_once(slots: int, vocabulary: int) -> int:
    """How many of these slots have their logits changed together; 1 at least."""
    return max(1, min(slots, PORTION // (vocabulary * BYTES_PER_LOGIT)))


def _changed(logits: mx.array, slots: Sequence[Slot], positions: mx.array, drafts: mx.array | None) -> mx.array:
    """Logits [P, vocabulary] as their slots [P] change them."""
    changes = [slot.change or NOTHING for slot in slots]
    if any(slot.change for slot in slots):
        logits = logits.astype(mx.float32)
    if any(change.bias is not None for change in changes):
        none = mx.zeros(logits.shape[-1])
        logits = logits + mx.stack([none if change.bias is None else change.bias for change in changes])
    if any(change.history is not None for change in changes):
        logits = _penalised(logits, changes, _histories(logits.shape[-1], slots, drafts))
    if held := [(p, end) for p, change in enumerate(changes) for end in change.ends]:
        rows, ends = (mx.array(column) for column in zip(*held, strict=True))
        early = positions[rows] < mx.array([change.until for change in changes])[rows]
        logits[rows, ends] = mx.where(early, -mx.inf, logits[rows, ends])
    return masked(logits, [slot.mask for slot in slots])


def _histories(vocabulary: int, slots: Sequence[Slot], drafts: mx.array | None) -> mx.array:
    """What was before each slot, the drafts before it among it; int32 [P, vocabulary]."""
    none = mx.zeros(vocabulary, mx.int32)
    own = [slot.change.history if slot.change else None for slot in slots]
    histories = mx.stack([none if history is None else history for history in own])
    before = [(p, draft) for p, slot in enumerate(slots) if own[p] is not None for draft in slot.drafts]
    if drafts is None or not before:
        return histories
    rows, places = (mx.array(column) for column in zip(*before, strict=True))
    return histories.at[rows, drafts[places]].add(2)


def _penalised(logits: mx.array, changes: Sequence[Change], histories: mx.array) -> mx.array:
    """Logits [P, vocabulary] float32 less the penalties for what was before."""
    numbers = [(change.repetition, change.presence, change.frequency) for change in changes]
    repetition, presence, frequency = (mx.array(column)[:, None] for column in zip(*numbers, strict=True))
    repeated = mx.where(logits > 0, logits / repetition, logits * repetition)
    logits = mx.where(histories > 0, repeated, logits)
    times = (histories >> 1).astype(mx.float32)
    return logits - presence * (times > 0) - frequency * times
