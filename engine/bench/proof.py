"""Whether a session computed what it should: what its rows hold is compared with mlx-lm's own forward of their texts.

Keys, values and recurrent memory of a row depend on every token before them, on positions and on masks, in every layer
but the first. So a fault of any round since a row began shows in what the row holds at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from ...kernels.pages.pool import Rows
from ..engine import Engine
from ..schedule.row import Row

SAMPLE = 4
"""Rows of a session that are compared."""

PIECE = 128
"""Tokens of a pass, where mlx-lm is run a second time to see how its own keys depend on that."""

FIRST = 4
"""Vectors are compared in groups, of which the first has so many and each later one as many as all before it: one key
too many among few is much, among many it is nothing.
"""

LEAST = {mx.float32: 1e-4, mx.float16: 1e-2, mx.bfloat16: 5e-2}
"""The median error of a group that each type of number excuses in any layer."""

TIMES = 4.0
"""So many times mlx-lm's own difference between two ways to cut a text into passes is excused as well."""

FOREIGN = 0.8
"""A slot whose error is larger holds another token's keys or values: those of two tokens differ by about 1.4."""

OUTLIER = 10.0
"""Without experts no slot's error is more than so many times what the median is excused. With them, a near tie may
send one token through other experts.
"""


@dataclass(frozen=True)
class Held:
    """What one layer holds of a row: vectors [n, size] of the tokens' keys or values, or of a recurrent state."""

    name: str
    vectors: mx.array

    def errors(self, expected: Held) -> mx.array:
        """Of each vector: its distance from the one expected, through that one's length."""
        a, b = (held.vectors.astype(mx.float32) for held in (self, expected))
        return mx.linalg.norm(a - b, axis=-1) / mx.maximum(mx.linalg.norm(b, axis=-1), 1e-6)


def flaw(engine: Engine, rows: Sequence[Row]) -> str | None:
    """What is wrong with what some of these rows hold, in one line; None if nothing is."""
    apart = max(1, len(rows) // SAMPLE)
    for row in rows[::apart][:SAMPLE]:
        if row.running and row.in_flight and (found := flaw_of(engine, row)):
            return f"row {row.request.id}: {found}"
    return None


def flaw_of(engine: Engine, row: Row) -> str | None:
    """As `flaw`, of one row that generates; its tokens must be mlx-lm's, too."""
    text = [*row.request.tokens, *row.generated]
    prompt, model = len(row.request.tokens), engine.target.model
    logits, expected = passed(model, text, recurrent_tokens(engine, row, len(text) - 1), len(text))
    chosen: Any = mx.argmax(logits[prompt - 1 : -1], axis=-1).tolist()
    if chosen != row.generated:
        at = next(i for i, (a, b) in enumerate(zip(chosen, row.generated, strict=True)) if a != b)
        return f"its {at + 1}. token is {row.generated[at]}, mlx-lm's {chosen[at]}"
    _, again = passed(model, text, recurrent_tokens(engine, row, len(text) - 1), PIECE)
    least = LEAST[engine.target.dtype]
    for own, right, other in zip(held(engine, row, len(text) - 1), expected, again, strict=True):
        errors = own.errors(right)
        excused = max(least, TIMES * float(mx.median(other.errors(right))))
        for first, end in groups(errors.size):
            if not (median := float(mx.median(errors[first:end]))) <= excused:
                return f"{own.name} {first} to {end - 1} are off by {median:.2g}, {excused:.2g} is excused"
        most = FOREIGN if engine.target.expert_layers else min(FOREIGN, OUTLIER * excused)
        if not float(errors.max()) <= most:
            return f"{own.name} {int(mx.argmax(errors))} are off by {float(errors.max()):.2g}"
    return None


def groups(count: int) -> Iterator[tuple[int, int]]:
    """First and end of the groups of so many vectors."""
    first, end = 0, FIRST
    while first < count:
        yield first, min(end, count)
        first, end = end, 2 * end


def recurrent_tokens(engine: Engine, row: Row, committed: int) -> int:
    """Tokens in the recurrent state after the round in flight: a verified block waits on a tape, one token does not."""
    recurrent = engine.state.recurrent
    return committed + (0 if recurrent is None or recurrent.taped(row.slot) else 1)


def held(engine: Engine, row: Row, committed: int) -> Iterator[Held]:
    """What a row holds of its committed tokens, layer by layer; first the layers that attend."""
    rows, kept = Rows.of([row.pages], [committed]), dict[Any, Any]()
    recurrent = engine.state.recurrent
    for layer, pool in enumerate(engine.state.pool.layers):
        for name, array in zip(("keys", "values"), pool.gather(rows, committed, kept), strict=True):
            yield Held(f"attention layer {layer}, {name}", array[0].swapaxes(0, 1).reshape(committed, -1))
    for layer, state in enumerate(recurrent.states(row.slot) if recurrent else []):
        yield Held(f"recurrent layer {layer}, states", state.flatten(1))


def passed(model: Any, text: Sequence[int], recurrent: int, piece: int) -> tuple[mx.array, list[Held]]:
    """mlx-lm's logits [T, vocabulary] of a text, taken in pieces, and what its caches hold but for the last token;
    recurrent states after so many tokens.
    """
    committed = len(text) - 1
    cache: Any = make_prompt_cache(model)
    ends = sorted({*range(piece, committed, piece), committed, recurrent, len(text)})
    logits: list[mx.array] = []
    found: list[Held] = []
    states: list[Held] = []
    for begin, end in zip([0, *ends], ends, strict=False):
        if begin < end:
            logits.append(model(mx.array([text[begin:end]]), cache=cache)[0])
            mx.eval(logits[-1])
        if end == committed:
            found = list(_keys_and_values(cache, committed))
        if end == recurrent:
            states = list(_states(cache))
    return mx.concatenate(logits), found + states


def _keys_and_values(cache: Sequence[Any], count: int) -> Iterator[Held]:
    attending = [layer for layer in cache if hasattr(layer, "keys")]
    for index, layer in enumerate(attending):
        for name, array in (("keys", layer.keys), ("values", layer.values)):  # [1, KV, n or more, D]
            yield Held(f"attention layer {index}, {name}", array[0].swapaxes(0, 1)[:count].reshape(count, -1))


def _states(cache: Sequence[Any]) -> Iterator[Held]:
    recurrent = [layer for layer in cache if not hasattr(layer, "keys")]
    for index, (_, state) in enumerate(recurrent):  # the convolution's inputs, and [1, Hv, Dv, Dk]
        yield Held(f"recurrent layer {index}, states", state[0].flatten(1))
