"""Tokens through experts by a kernel, against each token's products with the weights of the experts that it chose."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from draftmill.kernels.products.experts import ROOM, Layer, Product, experts_by_kernel, route
from draftmill.kernels.products.quantisation import AFFINE, Quantisation
from draftmill.kernels.products.tiling import TILINGS, Lanes
from tests.kernels.forms import EXACTLY, IN_HALF_PRECISION, Form, need_metal

from .weights import QUANTISATIONS, error, given

FOUR_BITS = Quantisation(64, 4)
EITHER = pytest.mark.parametrize("name", ["kernel", "kernel, 2 words", "matrices"])


def check(name: str, form: Form, tokens: int, each: int, count: int, quantisation: Quantisation) -> None:
    """Through two layers, the second of which has a bias, and a row of its own for each choice."""
    if not isinstance(TILINGS[name], Lanes):
        need_metal(form)
    mx.random.seed(tokens)
    (up, up_numbers), (down, down_numbers) = (
        given((count, *shape), quantisation, form.dtype) for shape in ((128, 256), (37, 128))
    )
    with mx.stream(mx.cpu):
        x = mx.random.normal((tokens, 256)).astype(form.dtype)
        bias = mx.random.normal((count, 37)).astype(form.dtype)
        chosen = mx.argsort(mx.random.normal((tokens, count)), axis=-1)[:, :each]

        def through(x: mx.array, product: Product) -> mx.array:
            return product(product(x, Layer(up)) * 0.1, Layer(down, bias))

        inside = 0.1 * (up_numbers[chosen] @ x.astype(mx.float32)[:, None, :, None])
        expected = (down_numbers[chosen] @ inside)[..., 0] + bias[chosen].astype(mx.float32)
    result = experts_by_kernel(x, chosen, through, TILINGS[name], count, form.launch)
    assert result.dtype == form.dtype
    assert error(result, expected) < 2 * form.bound


@EITHER
@EXACTLY
@pytest.mark.parametrize(("tokens", "each", "count"), [(1, 1, 3), (5, 2, 4), (17, 4, 40), (40, 3, 5), (64, 1, 1)])
def test_choices(name: str, form: Form, tokens: int, each: int, count: int) -> None:
    check(name, form, tokens, each, count, FOUR_BITS)


@EXACTLY
@pytest.mark.parametrize("name", ["kernel, 2 words", "matrices"])
@pytest.mark.parametrize("quantisation", [each for each in QUANTISATIONS if each.mode != AFFINE], ids=str)
def test_quantisations(name: str, form: Form, quantisation: Quantisation) -> None:
    check(name, form, 6, 2, 5, quantisation)


@pytest.mark.parametrize("name", ["kernel", "matrices"])
@IN_HALF_PRECISION
def test_half_precision(name: str, form: Form) -> None:
    check(name, form, 9, 2, 6, FOUR_BITS)


@EXACTLY
@pytest.mark.parametrize(
    ("count", "experts", "rows"), [(1, 1, 8), (7, 300, 8), (300, 7, 8), (512, 128, 4), (ROOM, 64, 16)]
)
def test_routes(form: Form, count: int, experts: int, rows: int) -> None:
    """The order is that of a stable sort, and tiles are as few as there can be, of one expert each."""
    chosen = mx.array(np.random.default_rng(count).integers(0, experts, count), mx.uint32)
    routed = route(chosen, experts, rows, form.launch)
    table, of_each = np.array(routed.table), np.array(chosen).tolist()
    order, tiles = table[:count].tolist(), table[count:].reshape(-1, 3).tolist()
    assert len(tiles) == routed.tiles
    assert order == np.argsort(of_each, kind="stable").tolist()
    used = [tile for tile in tiles if tile[1]]
    assert tiles[len(used) :] == [[0, 0, 0]] * (len(tiles) - len(used))
    of_expert = Counter(of_each)
    assert Counter(expert for _, _, expert in used) == {one: -(-size // rows) for one, size in of_expert.items()}
    place = 0
    for first, size, expert in used:
        assert first == place
        assert {of_each[order[i]] for i in range(first, first + size)} == {expert}
        place += size
    assert place == count
