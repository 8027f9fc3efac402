"""The kernels of recurrent layers, emulated, against their references, over rounds that leave memory to the next."""

from __future__ import annotations

import random

import mlx.core as mx
import pytest

from draftmill.kernels.packing import Span
from draftmill.kernels.recurrent.convolution import Heads, convolved_heads
from draftmill.kernels.recurrent.gated_delta import Tape, gated_delta
from draftmill.kernels.recurrent.plan import Place, Steps
from draftmill.kernels.recurrent.recurrence import convolution_fits, convolved_heads_by_kernel, gated_delta_by_kernel
from tests.kernels.forms import EXACTLY, IN_HALF_PRECISION, Form
from tests.kernels.recurrent.rounds import error, random_rounds, spans

Sizes = tuple[int, int, int, int]  # Hk, Hv, Dk, Dv
LOOKS, BESIDE = 4, 12


class Rounds:
    """Rounds in both forms, each of which goes on from the memory that the reference left."""

    def __init__(self, form: Form, sizes: Sizes = (1, 2, 32, 16), seed: int = 0):
        hk, hv, dk, dv = self.sizes = sizes
        self.form, dtype = form, form.dtype
        mx.random.seed(seed)
        self.state = mx.zeros((0, hv, dv, dk))
        self.tape = Tape(mx.zeros((0, hk, dk), dtype), mx.zeros((0, hv, dv)), mx.zeros((0, hv)))
        self.heads = Heads(hk, hv, dk, dv)
        self.inputs = mx.zeros((0, self.heads.channels), dtype)
        self.weight = mx.random.normal((self.heads.channels, LOOKS)).astype(dtype)
        self.places: dict[int, Place] = {}

    def round(self, spans: list[Span], accepted: list[int]) -> None:
        """Compare both forms of a round in whatever they give out or leave."""
        hk, hv, dk, dv = self.sizes
        count = sum(span.count for span in spans)
        steps = Steps.of(spans, self.places, mx.array(accepted, mx.int32), LOOKS - 1)
        q, k = (mx.random.normal((count, hk, dk)) for _ in range(2))
        q, k = (a / mx.linalg.norm(a, axis=-1, keepdims=True) for a in (q, k))
        v, beta = mx.random.normal((count, hv, dv)), mx.random.uniform(0, 1, (count, hv))
        q, k, v, beta = (array.astype(self.form.dtype) for array in (q, k, v, beta))
        decay = mx.random.uniform(0.5, 1, (count, hv))
        x = mx.random.normal((count, self.heads.channels + BESIDE)).astype(self.form.dtype)
        delta = (q, k, v, decay, beta, self.state, self.tape, steps)
        arrays = x, self.weight, self.inputs
        exact = [array.astype(mx.float32) for array in arrays]
        y, state, tape = gated_delta_by_kernel(*delta, self.form.launch)
        fits = convolution_fits(self.heads, self.form.dtype)
        convolved = convolved_heads_by_kernel(*arrays, steps, self.heads, self.form.launch) if fits else ()
        with mx.stream(mx.cpu):
            expected_y, self.state, self.tape = gated_delta(*delta)
            expected = convolved_heads(*exact, steps, self.heads)
        self.places = steps.places
        self.inputs = expected[-1].astype(self.form.dtype)
        assert all(array.dtype == self.form.dtype for array in convolved)
        pairs = [
            (y, expected_y),
            (state, self.state),
            *zip((array.astype(mx.float32) for array in convolved), expected, strict=fits),
        ]
        pairs += [(tape.k, self.tape.k), (tape.delta, self.tape.delta), (tape.decay, self.tape.decay)]
        assert max(error(*pair) for pair in pairs) < self.form.bound


@EXACTLY
@pytest.mark.parametrize("seed", range(10))
def test_random_rounds(form: Form, seed: int) -> None:
    chance = random.Random(seed)
    rounds = Rounds(form, seed=seed)
    for packed, accepted in random_rounds(chance, 15):
        rounds.round(packed, accepted)


@EXACTLY
@pytest.mark.parametrize("count", [1, 2, 15, 16, 31, 32, 33])
@pytest.mark.parametrize("final", [False, True])
def test_one_row(form: Form, count: int, final: bool) -> None:
    rounds = Rounds(form, seed=count)
    rounds.round(spans([(0, count, True, final)]), [0])
    rounds.round(spans([(0, 3, False, False)]), [count - 1])
    rounds.round(spans([(0, 1, False, True)]), [3])


@EXACTLY
def test_sixteen_rows_of_depths_0_and_15(form: Form) -> None:
    rounds = Rounds(form)
    for turn, accepted in enumerate([[0] * 16, [0, 1, 16, 7] * 4, [1] * 16, [0] * 16]):
        rows = [(row, 1 if (row + turn) % 3 else 16, not turn, False) for row in range(16)]
        rounds.round(spans(rows), accepted)


@EXACTLY
@pytest.mark.parametrize("sizes", [(1, 1, 32, 1), (2, 2, 64, 20), (1, 4, 96, 33), (2, 4, 128, 128)])
def test_sizes_of_heads(form: Form, sizes: Sizes) -> None:
    rounds = Rounds(form, sizes)
    rounds.round(spans([(0, 5, True, False), (1, 1, True, True)]), [0, 0])
    rounds.round(spans([(1, 2, False, False), (0, 3, False, True)]), [0, 2])


@IN_HALF_PRECISION
def test_half_precision(form: Form) -> None:
    rounds = Rounds(form)
    rounds.round(spans([(0, 16, True, False), (1, 20, True, True)]), [0, 0])
    rounds.round(spans([(0, 4, False, False), (1, 1, False, False)]), [9, 0])
