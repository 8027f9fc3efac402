"""The contests of quantised experts: in which order tokens go through those that they chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import mlx.core as mx

from ..products.experts import Through, experts, experts_in_other_order
from .keys import OTHER_ORDER, STOCK, experts_key
from .noise import noise
from .race import Call, Contest, Form, after


@dataclass(frozen=True)
class ExpertsShape:
    """Gated experts, tokens of `length` with so many elements `inside`, quantised in one of MLX's ways; a token goes
    through those that it has `chosen`.
    """

    length: int
    inside: int
    experts: int
    group_size: int
    bits: int
    mode: str
    chosen: int
    dtype: mx.Dtype


def expert_contests(shape: ExpertsShape) -> Iterator[Contest]:
    """Of few tokens in a round and of more. Others run in the order of mlx-lm's."""
    kind = shape.length, shape.inside, shape.experts, shape.group_size, shape.bits, shape.mode
    for tokens in (16, 64):
        key = experts_key(tokens, shape.chosen, kind, shape.dtype)
        yield Contest(key, shape.dtype, partial(_forms, shape, tokens))


def _forms(shape: ExpertsShape, tokens: int) -> Mapping[str, Form]:
    x = noise(tokens, shape.length, dtype=shape.dtype)
    chosen = mx.argsort(mx.random.normal((tokens, shape.experts)), axis=-1)[:, : shape.chosen]
    gate, up = (_weights(shape, shape.inside, shape.length) for _ in range(2))
    down = _weights(shape, shape.length, shape.inside)
    mx.eval(x, chosen)

    def product(x: mx.array, weights: list[mx.array], experts: mx.array, ascending: bool) -> mx.array:
        w, scales, *biases = weights
        quantisation = dict(group_size=shape.group_size, bits=shape.bits, mode=shape.mode)
        return mx.gather_qmm(
            x, w, scales, *biases, rhs_indices=experts, transpose=True, sorted_indices=ascending, **quantisation
        )

    def through(x: mx.array, experts: mx.array, ascending: bool) -> mx.array:
        opened = product(x, gate, experts, ascending)
        inside = opened * mx.sigmoid(opened) * product(x, up, experts, ascending)
        return product(inside, down, experts, ascending)

    def run(form: Callable[[mx.array, mx.array, Through], mx.array], round: int) -> Call:
        return lambda layer, before: [form(after(x, before), chosen, through)]

    forms = {STOCK: experts, OTHER_ORDER: experts_in_other_order}
    return {name: Form(partial(run, form)) for name, form in forms.items()}


def _weights(shape: ExpertsShape, lines: int, length: int) -> list[mx.array]:
    """Quantised noise of all experts, which is made one by one: words, scales, and biases if there are any."""
    each = [
        mx.quantize(noise(lines, length, dtype=shape.dtype) / length**0.5, shape.group_size, shape.bits, shape.mode)
        for _ in range(shape.experts)
    ]
    stacked = [mx.stack(list(parts)) for parts in zip(*each, strict=True)]
    mx.eval(stacked)
    return stacked
