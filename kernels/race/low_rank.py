"""The contests of what LoRA adapters add to a linear layer: by dense products with masks, or by a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import mlx.core as mx

from ..gpu.source import Launch
from ..products.low_rank import Chosen, LowRank, add_low_rank, add_low_rank_by_kernel, fits
from .keys import KERNEL, STOCK, low_rank_key
from .noise import noise
from .race import Call, Contest, Form, after


@dataclass(frozen=True)
class LowRankShape:
    """Adapters of linear layers of `length` and `lines`; `owners` has the adapter of each of their ranks."""

    length: int
    lines: int
    owners: tuple[int, ...]
    dtype: mx.Dtype


def low_rank_contests(shape: LowRankShape, launch: Launch) -> Iterator[Contest]:
    """Of few tokens in a round, of more, and of many."""
    for tokens in (8, 32, 96):
        key = low_rank_key(tokens, shape.length, shape.lines, len(shape.owners), shape.dtype)
        yield Contest(key, shape.dtype, partial(_forms, shape, launch, tokens))


def _forms(shape: LowRankShape, launch: Launch, tokens: int) -> Mapping[str, Form]:
    x, y, down, up = (
        noise(*sizes, dtype=shape.dtype)
        for sizes in (
            (tokens, shape.length),
            (tokens, shape.lines),
            (len(shape.owners), shape.length),
            (len(shape.owners), shape.lines),
        )
    )
    layer = LowRank(down / shape.length**0.5, up, shape.owners)
    adapters = mx.arange(tokens) % (shape.owners[-1] + 2) - 1  # each, and none
    chosen = Chosen(adapters.astype(mx.int32))
    mx.eval(x, y, layer.down, layer.up, chosen.adapters, chosen.mask(shape.owners))

    def run(form: Callable[..., mx.array], round: int) -> Call:
        return lambda layer_index, before: [form(y, after(x, before), layer, chosen)]

    forms: dict[str, Callable[..., mx.array]] = {STOCK: add_low_rank}
    if fits(x, layer):
        forms[KERNEL] = partial(add_low_rank_by_kernel, launch=launch)
    return {name: Form(partial(run, form)) for name, form in forms.items()}
