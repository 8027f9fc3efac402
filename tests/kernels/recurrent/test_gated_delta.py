"""The gated delta rule and its convolution over ragged rounds against mlx-lm's own, row by row, one step at a time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.gated_delta import gated_delta_ops

from draftmill.kernels.packing import Span
from draftmill.kernels.recurrent.convolution import causal_convolution
from draftmill.kernels.recurrent.gated_delta import Tape, gated_delta, replay
from draftmill.kernels.recurrent.plan import Place, Steps

HK, HV, DK, DV, C, K = 2, 4, 16, 8, 12, 4

Inputs = dict[str, mx.array]


def draw(count: int) -> Inputs:
    """Random inputs of `count` tokens."""
    keys = mx.random.normal((count, HK, DK))
    return {
        "q": mx.random.normal((count, HK, DK)) * DK**-0.5,
        "k": keys / mx.linalg.norm(keys, axis=-1, keepdims=True),
        "v": mx.random.normal((count, HV, DV)),
        "decay": mx.random.uniform(0.5, 1, (count, HV)),
        "beta": mx.random.uniform(0, 1, (count, HV)),
        "x": mx.random.normal((count, C)),
    }


def join(parts: list[Inputs]) -> Inputs:
    return {name: mx.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass
class Memory:
    """What rounds leave, as the engine keeps it."""

    state: mx.array = field(default_factory=lambda: mx.zeros((0, HV, DV, DK)))
    inputs: mx.array = field(default_factory=lambda: mx.zeros((0, C)))
    tape: Tape = field(default_factory=lambda: Tape(mx.zeros((0, HK, DK)), mx.zeros((0, HV, DV)), mx.zeros((0, HV))))
    places: dict[int, Place] = field(default_factory=dict)

    def round(self, spans: list[Span], tokens: Inputs, accepted: list[int], weight: mx.array) -> tuple[mx.array, ...]:
        steps = Steps.of(spans, self.places, mx.array(accepted, mx.int32), K - 1)
        q, k, v, decay, beta = (tokens[name] for name in ("q", "k", "v", "decay", "beta"))
        y, self.state, self.tape = gated_delta(q, k, v, decay, beta, self.state, self.tape, steps)
        convolved, self.inputs = causal_convolution(tokens["x"], weight, self.inputs, steps)
        self.places = steps.places
        return y, convolved


def alone(history: Inputs | None, tokens: Inputs, weight: mx.array) -> tuple[mx.array, mx.array]:
    """mlx-lm's outputs for `tokens` after `history`, from zeros."""
    everything = join([history, tokens]) if history else tokens
    batch = {name: array[None] for name, array in everything.items()}
    y, _ = gated_delta_ops(*(batch[name] for name in ("q", "k", "v", "decay", "beta")))
    conv = nn.Conv1d(C, C, K, groups=C, bias=False)
    conv.weight = weight[..., None]
    convolved = conv(mx.concatenate([mx.zeros((1, K - 1, C)), batch["x"]], axis=1))
    count = tokens["x"].shape[0]
    return y[0, -count:], convolved[0, -count:]


@pytest.mark.parametrize("seed", range(6))
def test_ragged_rounds_equal_each_row_alone(seed: int) -> None:
    chance = random.Random(seed)
    mx.random.seed(seed)
    weight = mx.random.normal((C, K))
    memory = Memory()
    certain: dict[int, Inputs | None] = dict.fromkeys(range(5))  # of each row, what is in its history
    pending: dict[int, Inputs | None] = dict.fromkeys(range(5))  # and on its tape
    for _ in range(8):
        rows = list(range(5))
        chance.shuffle(rows)
        spans: list[Span] = []
        parts: list[Inputs] = []
        replays: list[int] = []
        for row in rows:
            fresh = not memory.places or chance.random() < 0.15
            final = chance.random() < 0.4
            count = chance.randint(1, 70) if final else chance.randint(1, 16)
            spans.append(Span(sum(s.count for s in spans), count, (), 0, row=row, fresh=fresh, final=final))
            parts.append(draw(count))
            tape = None if fresh else pending[row]
            replays.append(chance.randint(0, tape["x"].shape[0]) if tape else chance.randint(0, 9))
            before = None if fresh else certain[row]
            if tape and replays[-1]:
                kept = {name: array[: replays[-1]] for name, array in tape.items()}
                before = join([before, kept]) if before else kept
            certain[row] = before
        y, convolved = memory.round(spans, join(parts), replays, weight)
        for span, tokens in zip(spans, parts, strict=True):
            own = slice(span.query, span.query + span.count)
            expected_y, expected_convolved = alone(certain[span.row], tokens, weight)
            assert mx.allclose(y[own], expected_y, rtol=1e-4, atol=1e-5)
            assert mx.allclose(convolved[own], expected_convolved, rtol=1e-4, atol=1e-5)
            history = certain[span.row]
            if span.final:
                certain[span.row] = join([history, tokens]) if history else tokens
            pending[span.row] = None if span.final else tokens


def same(states: mx.array, expected: mx.array) -> bool:
    """Whether they are equal: exactly on a CPU; a GPU's compiler may fuse products and sums of one form alone."""
    if mx.default_device() == mx.cpu:
        return bool(mx.array_equal(states, expected))
    return bool(mx.allclose(states, expected, rtol=1e-5, atol=1e-6))


def test_masked_replay_equals_stepping_and_other_rows_exactly() -> None:
    mx.random.seed(0)
    weight = mx.zeros((C, K))
    counts = [1, 4, 9, 16, 16]
    spans = [Span(sum(counts[:i]), count, (), 0, row=i, fresh=True, final=False) for i, count in enumerate(counts)]
    tokens = draw(sum(counts))
    memory = Memory()
    memory.round(spans, tokens, [0] * 5, weight)
    again = [Span(i, 1, (), 0, row=i, final=False) for i in range(5)]
    for accepted in ([0, 0, 0, 0, 0], [1, 4, 9, 16, 16], [1, 2, 0, 7, 16]):
        steps = Steps.of(again, memory.places, mx.array(accepted, mx.int32), K - 1)
        origins = mx.array([place.seat for place in steps.origins])
        states = replay(memory.state[origins], memory.tape, steps, HV // HK)
        for row, count in enumerate(accepted):
            if not count:
                assert same(states[row], mx.zeros((HV, DV, DK)))
                continue
            own = {name: array[spans[row].query :][:count] for name, array in tokens.items()}
            stepped = Memory()
            stepped.round([Span(0, count, (), 0, fresh=True)], own, [0], weight)
            assert same(states[row], stepped.state[0])


def test_a_rows_numbers_stay_its_own() -> None:
    mx.random.seed(1)
    weight = mx.random.normal((C, K))
    tokens = draw(8)
    poisoned = {
        name: mx.where(mx.arange(8).reshape(-1, *[1] * (a.ndim - 1)) < 4, mx.nan, a) for name, a in tokens.items()
    }
    memory = Memory()
    spans = [Span(4 * i, 4, (), 0, row=i, fresh=True, final=False) for i in range(2)]
    memory.round(spans, poisoned, [0, 0], weight)
    clean = Memory()
    clean.round(spans, tokens, [0, 0], weight)
    for accepted in ([3, 1], [0, 4]):
        outputs = memory.round(spans_of_one(), draw_again(), accepted, weight)
        expected = clean.round(spans_of_one(), draw_again(), accepted, weight)
        for output, right in zip(outputs, expected, strict=True):
            assert mx.array_equal(output[1], right[1])


def spans_of_one() -> list[Span]:
    return [Span(i, 1, (), 0, row=i, final=False) for i in range(2)]


def draw_again() -> Inputs:
    mx.random.seed(2)
    return draw(2)


def test_the_table_tells_a_kernel_where_rows_come_from() -> None:
    mx.random.seed(4)
    memory = Memory()
    first = [Span(0, 2, (), 0, row=7, fresh=True), Span(2, 5, (), 0, row=3, fresh=True, final=False)]
    memory.round(first, draw(7), [0, 0], mx.zeros((C, K)))
    second = [Span(0, 1, (), 0, row=7), Span(1, 4, (), 0, row=3, final=False), Span(5, 1, (), 0, row=1, fresh=True)]
    steps = Steps.of(second, memory.places, mx.array([0, 2, 0], mx.int32), K - 1)
    # Row 3 sat first: its span was the longest.
    assert steps.table.tolist() == [
        [1, 4, 0, 0, 0, 0, 5, 0, 0],
        [0, 1, 1, 1, 8, 5, 0, 7, 4],
        [5, 1, 1, -1, 0, 0, 0, 10, 4],
    ]
    assert steps.replay.tolist() == [2, 0, 0]


def test_half_precision_keeps_its_type_and_a_state_in_float32() -> None:
    mx.random.seed(3)
    tokens = {name: array if name == "decay" else array.astype(mx.bfloat16) for name, array in draw(12).items()}
    memory = Memory()
    y, convolved = memory.round(
        [Span(0, 12, (), 0, fresh=True)], tokens, [0], mx.random.normal((C, K)).astype(mx.bfloat16)
    )
    assert (y.dtype, convolved.dtype, memory.inputs.dtype) == (mx.bfloat16,) * 3
    assert memory.state.dtype == memory.tape.delta.dtype == mx.float32
