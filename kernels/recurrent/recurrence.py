"""Recurrent layers by our own kernels: the gated delta rule with late commit, the convolution before it, and others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import mlx.core as mx

from ..gpu.launch import CONSTANT_SIZE, TYPES, on_gpu
from ..gpu.source import Launch, read_kernels
from .convolution import Convolved, Heads
from .gated_delta import Tape
from .plan import Steps

_HERE = Path(__file__).parent
GATED_DELTA = read_kernels(_HERE / "gated_delta.metal")["gated_delta"]
CONVOLVE = read_kernels(_HERE / "convolution.metal")["convolve"]

LANES = 8
"""Lanes that share a line of a head's state: few, so that their sums take few exchanges."""

THREADS = 128


def fits(k: mx.array) -> bool:
    """Whether the kernel is made for keys [N, Hk, Dk] like these."""
    return k.shape[2] % (4 * LANES) == 0 and k.dtype in TYPES


def gated_delta_by_kernel(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    decay: mx.array,
    beta: mx.array,
    state: mx.array,
    tape: Tape,
    steps: Steps,
    launch: Launch = on_gpu,
) -> tuple[mx.array, mx.array, Tape]:
    """As `gated_delta.gated_delta`, of keys that `fits`."""
    (count, key_heads, key_dim), (value_heads, value_dim) = k.shape, v.shape[1:]
    seats = len(steps.seats)
    taped = sum(span.count for span in steps.seats if not span.final)
    made = [
        ((count, value_heads, value_dim), q.dtype),
        ((seats, value_heads, value_dim, key_dim), mx.float32),
        ((max(taped, 1), key_heads, key_dim), k.dtype),  # an empty tape is cut off an unwritten one
        ((max(taped, 1), value_heads, value_dim), mx.float32),
        ((max(taped, 1), value_heads), mx.float32),
    ]
    sizes = {"HK": key_heads, "HV": value_heads, "DK": key_dim, "DV": value_dim}
    inputs = [q, k, v, decay, beta, *map(_some, (state, tape.k, tape.delta, tape.decay)), steps.table, steps.accepted]
    output, state, *left = launch(
        GATED_DELTA,
        inputs,
        {"T": q.dtype, **sizes, "LANES": LANES},
        (-(-value_dim * LANES // THREADS), value_heads, seats),
        THREADS,
        made,
    )
    return output, state, Tape(*(array[:taped] for array in left))


def convolution_fits(heads: Heads, dtype: mx.Dtype) -> bool:
    """Whether the kernel is made for heads and a type like these."""
    return heads.key_dim in (16, 32, 64, 128) and heads.channels % 4 == 0 and dtype in TYPES


def convolved_heads_by_kernel(
    x: mx.array, weight: mx.array, inputs: mx.array, steps: Steps, heads: Heads, launch: Launch = on_gpu
) -> Convolved:
    """As `convolution.convolved_heads`, of heads for which `convolution_fits`."""
    sizes = {"KEYS": heads.keys * heads.key_dim, "VALUES": heads.values * heads.value_dim, "DK": heads.key_dim}
    of_keys, of_values = (heads.keys, heads.key_dim), (heads.values, heads.value_dim)
    count = x.shape[0]
    made = [(count, *of_keys), (count, *of_keys), (count, *of_values)]
    q, k, v, left = _convolve(x, weight, inputs, steps, {**sizes, "GATED": False}, made, launch)
    return q, k, v, left


def gated_convolution_fits(channels: int, dtype: mx.Dtype) -> bool:
    """Whether the kernel is made for so many channels and a type like this."""
    return channels % 4 == 0 and dtype in TYPES


def gated_convolution_by_kernel(
    x: mx.array, weight: mx.array, inputs: mx.array, steps: Steps, launch: Launch = on_gpu
) -> tuple[mx.array, mx.array]:
    """As `convolution.gated_convolution` without a bias, of channels for which `gated_convolution_fits`."""
    count, channels = x.shape[0], weight.shape[0]
    sizes = {"KEYS": 0, "VALUES": channels, "DK": 16, "GATED": True}  # no heads: their size does not matter
    _, _, output, left = _convolve(x, weight, inputs, steps, sizes, [(1,), (1,), (count, channels)], launch)
    return output, left


def _convolve(
    x: mx.array,
    weight: mx.array,
    inputs: mx.array,
    steps: Steps,
    sizes: dict[str, int | bool],
    made: Sequence[tuple[int, ...]],
    launch: Launch,
) -> list[mx.array]:
    """The kernel's outputs: as many as are `made` of the round's tokens, and the inputs that the round leaves."""
    (count, width), kept, (channels, looks) = x.shape, len(steps.kept), weight.shape
    return launch(
        CONVOLVE,
        [x, weight, _some(inputs), steps.looks, steps.kept, steps.table, steps.accepted, steps.sizes],
        {"T": x.dtype, "WIDTH": width, **sizes, "LOOKS": looks},
        (-(-channels // (4 * THREADS)), count + kept, 1),
        THREADS,
        [*((shape, x.dtype) for shape in made), ((kept, channels), x.dtype)],
    )


def _some(array: mx.array) -> mx.array:
    """The array, or a few elements of its kind if it is empty: a buffer must be there, though nobody reads it.

    As many as keep it out of Metal's constant memory, so that a first round runs the same variant as later ones.
    """
    return array if array.size else _nothing(array.dtype)


@cache
def _nothing(dtype: mx.Dtype) -> mx.array:
    """Made once: making it takes a launch."""
    nothing = mx.zeros((CONSTANT_SIZE,), dtype)
    mx.eval(nothing)
    return nothing
