"""What adapters add to a layer's outputs, by the kernel and by dense products, against each token's own A and B."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from draftmill.kernels.products.low_rank import (
    ROOM,
    Chosen,
    LowRank,
    add_low_rank,
    add_low_rank_by_kernel,
    fits,
)
from tests.kernels.forms import EXACTLY, IN_HALF_PRECISION, Form

OWNERS = {
    "one": (0,),
    "two": (0, 0, 0, 1),
    "one without any": (0, 0, 2, 2, 2, 2, 2, 3),
    "many": tuple(rank // 24 for rank in range(8 * 24)),
    "full": (0,) * ROOM + (1,),
}


def check(form: Form, owners: tuple[int, ...], tokens: int, length: int, lines: int) -> None:
    mx.random.seed(tokens + length)
    ranks = len(owners)
    x, y, down, up = (
        mx.random.normal(shape).astype(form.dtype)
        for shape in ((tokens, length), (tokens, lines), (ranks, length), (ranks, lines))
    )
    layer = LowRank((down / length**0.5).astype(form.dtype), up, owners)
    adapters = [token % (owners[-1] + 3) - 1 for token in range(tokens)]  # none, each, and one that has no ranks here
    chosen = Chosen(mx.array(adapters, mx.int32))
    assert fits(x, layer)
    own, more, a, b = (np.array(array.astype(mx.float32), np.float64) for array in (y, x, layer.down, layer.up))
    for token, adapter in enumerate(adapters):
        mine = [rank for rank, owner in enumerate(owners) if owner == adapter]
        own[token] += (more[token] @ a[mine].T) @ b[mine]
    for found in (add_low_rank_by_kernel(y, x, layer, chosen, form.launch), add_low_rank(y, x, layer, chosen)):
        assert (found.shape, found.dtype) == (y.shape, form.dtype)
        assert np.abs(np.array(found.astype(mx.float32)) - own).max() / np.abs(own).max() < form.bound


@EXACTLY
@pytest.mark.parametrize("owners", OWNERS)
@pytest.mark.parametrize(("tokens", "length", "lines"), [(1, 4, 1), (3, 132, 70), (11, 64, 1030)])
def test_each_token_has_its_own_adapter(form: Form, owners: str, tokens: int, length: int, lines: int) -> None:
    check(form, OWNERS[owners], tokens, length, lines)


@IN_HALF_PRECISION
def test_half_precision(form: Form) -> None:
    check(form, OWNERS["two"], 5, 64, 96)


def test_what_the_kernel_has_no_room_for() -> None:
    def layer(owners: tuple[int, ...]) -> LowRank:
        return LowRank(mx.zeros((len(owners), 8)), mx.zeros((len(owners), 8)), owners)

    assert not fits(mx.zeros((1, 8)), layer((0,) * (ROOM + 1)))
    assert not fits(mx.zeros((1, 6)), layer((0,)))
    assert not fits(mx.zeros((1, 8), mx.int32), layer((0,)))
