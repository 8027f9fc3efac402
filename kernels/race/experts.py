"""The contests of quantised experts: how tokens go through those that they chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial

import mlx.core as mx

from ..gpu.source import Launch
from ..products.experts import (
    ROOM,
    Layer,
    Product,
    Through,
    experts,
    experts_by_kernel,
    experts_in_other_order,
)
from ..products.quantisation import Weight
from ..products.tiling import RACED_OF_EXPERTS, raced
from .keys import OTHER_ORDER, STOCK, ExpertsKind, experts_key
from .noise import noise
from .race import Call, Contest, Form, after


@dataclass(frozen=True)
class ExpertsShape:
    """Gated experts of a kind; a token goes through those that it has `chosen`."""

    kind: ExpertsKind
    chosen: int
    dtype: mx.Dtype


def expert_contests(shape: ExpertsShape, launch: Launch) -> Iterator[Contest]:
    """Of few tokens in a round and of more. Others run in the order of mlx-lm's."""
    weights = cache(partial(_layers, shape))  # made when the first contest is
    for tokens in RACED_OF_EXPERTS:
        key = experts_key(tokens, shape.chosen, shape.kind, shape.dtype)
        yield Contest(key, shape.dtype, partial(_forms, shape, launch, weights, tokens))


def _forms(
    shape: ExpertsShape, launch: Launch, weights: Callable[[], tuple[Layer, ...]], tokens: int
) -> Mapping[str, Form]:
    kind = shape.kind
    x = noise(tokens, kind.length, dtype=shape.dtype)
    chosen = mx.argsort(mx.random.normal((tokens, kind.experts)), axis=-1)[:, : shape.chosen]
    gate, up, down = weights()
    mx.eval(x, chosen)

    def through(x: mx.array, product: Product) -> mx.array:
        opened = product(x, gate)
        return product(opened * mx.sigmoid(opened) * product(x, up), down)

    def run(form: Callable[[mx.array, mx.array, Through], mx.array], round: int) -> Call:
        return lambda layer, before: [form(after(x, before), chosen, through)]

    forms: dict[str, Callable[[mx.array, mx.array, Through], mx.array]] = {
        STOCK: experts,
        OTHER_ORDER: experts_in_other_order,
    }
    if kind.quantisation.known and chosen.size <= ROOM:
        names = RACED_OF_EXPERTS[tokens]
        inside = raced(names, kind.inside, kind.quantisation)
        for name, tiling in raced(names, kind.length, kind.quantisation).items():
            if name in inside:
                forms[name] = partial(experts_by_kernel, tiling=tiling, count=kind.experts, launch=launch)
    return {name: Form(partial(run, form)) for name, form in forms.items()}


def _layers(shape: ExpertsShape) -> tuple[Layer, ...]:
    """Of gate, up and down."""
    kind = shape.kind
    sizes = (kind.inside, kind.length), (kind.inside, kind.length), (kind.length, kind.inside)
    return tuple(_layer(shape, lines, length) for lines, length in sizes)


def _layer(shape: ExpertsShape, lines: int, length: int) -> Layer:
    """Quantised noise of all experts, which is made one by one."""
    quantisation = shape.kind.quantisation
    each = [
        mx.quantize(noise(lines, length, dtype=shape.dtype) / length**0.5, **quantisation._asdict())
        for _ in range(shape.kind.experts)
    ]
    packed, scales, *biases = (mx.stack(list(parts)) for parts in zip(*each, strict=True))
    mx.eval(packed, scales, *biases)
    return Layer(Weight(packed, scales, biases[0] if biases else None, quantisation))
