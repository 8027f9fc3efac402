"""Short convolutions between gates: the reference against mlx-lm's own by row; the kernel, emulated, against it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import lfm2

from draftmill.kernels.packing import Span
from draftmill.kernels.recurrent.convolution import gated_convolution
from draftmill.kernels.recurrent.plan import Place, Steps
from draftmill.kernels.recurrent.recurrence import gated_convolution_by_kernel
from tests.kernels.emulator import Fault, on_cpu
from tests.kernels.forms import EMULATED, EXACTLY, IN_HALF_PRECISION, Form
from tests.kernels.recurrent.rounds import error, random_rounds, spans

CHANNELS = 12


def as_in_mlx_lm(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """The outputs [N, C] of mlx-lm's layer for one row from its beginning, whose projections are x [N, 3 C]."""
    channels, looks = weight.shape
    args = lfm2.ModelArgs(
        model_type="lfm2",
        vocab_size=8,
        hidden_size=channels,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=8,
        norm_eps=1e-5,
        conv_bias=bias is not None,
        conv_L_cache=looks,
        block_dim=channels,
        block_ff_dim=8,
        block_multiple_of=8,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False,
        full_attn_idxs=[],
    )
    layer: Any = lfm2.ShortConv(args, 0)
    layer.in_proj = layer.out_proj = nn.Identity()  # what is around the convolution is not asked here
    layer.conv.weight = weight[..., None]
    if bias is not None:
        layer.conv.bias = bias
    return layer(x[None])[0]


class Rounds:
    """Rounds in both forms, each of which goes on from what the reference left."""

    def __init__(self, form: Form, channels: int = CHANNELS, looks: int = 3, seed: int = 0):
        self.form = form
        mx.random.seed(seed)
        self.weight = mx.random.normal((channels, looks)).astype(form.dtype)
        self.inputs = mx.zeros((0, channels), form.dtype)
        self.places: dict[int, Place] = {}

    def round(self, packed: list[Span], accepted: list[int]) -> tuple[mx.array, mx.array]:
        """The round's projections and outputs, in which both forms agree as in what they leave."""
        channels, looks = self.weight.shape
        count = sum(span.count for span in packed)
        steps = Steps.of(packed, self.places, mx.array(accepted, mx.int32), looks - 1)
        x = mx.random.normal((count, 3 * channels)).astype(self.form.dtype)
        output, left = gated_convolution_by_kernel(x, self.weight, self.inputs, steps, self.form.launch)
        with mx.stream(mx.cpu):
            exact, weight, inputs = (array.astype(mx.float32) for array in (x, self.weight, self.inputs))
            enters, leaves, values = mx.split(exact, 3, axis=-1)
            entered = (enters * values).astype(self.form.dtype).astype(mx.float32)  # rounded, as it is kept
            exact = mx.concatenate([mx.ones_like(enters), leaves, entered], axis=-1)
            expected, kept = gated_convolution(exact, weight, None, inputs, steps)
        assert output.dtype == left.dtype == self.form.dtype
        assert error(output.astype(mx.float32), expected) < self.form.bound
        assert error(left.astype(mx.float32), kept) < self.form.bound
        self.places, self.inputs = steps.places, kept.astype(self.form.dtype)
        return x, expected


@EXACTLY
@pytest.mark.parametrize("seed", range(6))
def test_random_rounds(form: Form, seed: int) -> None:
    chance = random.Random(seed)
    rounds = Rounds(form, channels=chance.choice([4, 12, 520]), looks=chance.choice([2, 3, 4]), seed=seed)
    for packed, accepted in random_rounds(chance, 10):
        rounds.round(packed, accepted)


@EXACTLY
@pytest.mark.parametrize("count", [1, 2, 3, 16, 33])
@pytest.mark.parametrize("final", [False, True])
def test_one_row(form: Form, count: int, final: bool) -> None:
    rounds = Rounds(form, seed=count)
    rounds.round(spans([(0, count, True, final)]), [0])
    rounds.round(spans([(0, 3, False, False)]), [count - 1])
    rounds.round(spans([(0, 1, False, True)]), [3])


@IN_HALF_PRECISION
def test_half_precision(form: Form) -> None:
    rounds = Rounds(form)
    rounds.round(spans([(0, 16, True, False), (1, 20, True, True)]), [0, 0])
    rounds.round(spans([(0, 4, False, False), (1, 1, False, False)]), [9, 0])


@IN_HALF_PRECISION
def test_it_does_not_matter_which_round_inputs_came_in(form: Form) -> None:
    """What a row keeps is rounded, so what it has not kept yet must be, too: outputs are the same to the last bit."""
    rounds = Rounds(form)
    x = mx.random.normal((6, 3 * CHANNELS)).astype(form.dtype)

    def run(part: mx.array, inputs: mx.array, fresh: bool) -> tuple[mx.array, mx.array]:
        steps = Steps.of(spans([(0, part.shape[0], fresh, True)]), rounds.places, None, 2)
        rounds.places = dict(steps.places)
        return gated_convolution_by_kernel(part, rounds.weight, inputs, steps, form.launch)

    together, _ = run(x, rounds.inputs, True)
    first, left = run(x[:4], rounds.inputs, True)
    second, _ = run(x[4:], left, False)
    if form.launch is on_cpu:  # elsewhere nothing may have run
        assert mx.array_equal(together, mx.concatenate([first, second]))


@pytest.mark.parametrize("biased", [False, True])
def test_the_reference_equals_mlx_lm_however_a_row_is_cut(biased: bool) -> None:
    """Two rows: one in rounds of guesses of which some are accepted, one in chunks of a prompt."""
    mx.random.seed(3)
    weight = mx.random.normal((CHANNELS, 3))
    bias = mx.random.normal((CHANNELS,)) if biased else None
    history = {0: mx.zeros((0, 3 * CHANNELS)), 1: mx.zeros((0, 3 * CHANNELS))}
    inputs, places, pending = mx.zeros((0, CHANNELS)), dict[int, Place](), mx.zeros((0, 3 * CHANNELS))
    for turn, (guesses, chunk, accepted) in enumerate([(4, 5, 0), (3, 1, 2), (1, 7, 3), (5, 2, 0), (2, 2, 5)]):
        history[0] = mx.concatenate([history[0], pending[:accepted]])
        x = mx.random.normal((guesses + chunk, 3 * CHANNELS))
        steps = Steps.of(
            spans([(0, guesses, not turn, False), (1, chunk, not turn, True)]), places, mx.array([accepted, 0]), 2
        )
        output, inputs = gated_convolution(x, weight, bias, inputs, steps)
        places, pending = dict(steps.places), x[:guesses]
        for own, before, got in (
            (x[:guesses], history[0], output[:guesses]),
            (x[guesses:], history[1], output[guesses:]),
        ):
            expected = as_in_mlx_lm(mx.concatenate([before, own]), weight, bias)[-own.shape[0] :]
            assert mx.allclose(got, expected, rtol=1e-4, atol=1e-5)
        history[1] = mx.concatenate([history[1], x[guesses:]])


@EMULATED
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("look >= own", "look > own"),
        ("2 * CHANNELS + channel", "CHANNELS + channel"),
        ("table[seat * 9 + 4] + replay[seat]", "table[seat * 9 + 4]"),
        ("* gate.y", "* gate.x"),
    ],
)
def test_an_error_in_the_kernel_is_found(old: str, new: str) -> None:
    def launch(kernel, *rest):
        assert old in kernel.body
        return on_cpu(replace(kernel, body=kernel.body.replace(old, new)), *rest)

    def two_rounds() -> None:
        rounds = Rounds(Form(launch, mx.float32, 1e-5))
        rounds.round(spans([(0, 5, True, False), (1, 3, True, True)]), [0, 0])
        rounds.round(spans([(0, 2, False, False), (1, 1, False, True)]), [3, 0])

    with pytest.raises((AssertionError, Fault)):
        two_rounds()
