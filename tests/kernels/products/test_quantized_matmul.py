"""The kernels of quantised products, in every tiling, against products with what MLX says the weight stands for."""

from __future__ import annotations

import mlx.core as mx
import pytest

from draftmill.kernels.products import tiling
from draftmill.kernels.products.quantisation import Quantisation
from draftmill.kernels.products.quantized_matmul import quantized_matmul, quantized_matmul_by_kernel
from draftmill.kernels.products.tiling import TILINGS, Lanes
from tests.kernels.forms import EXACTLY, IN_HALF_PRECISION, Form, need_metal

from .weights import QUANTISATIONS, error, given

FOUR_BITS = Quantisation(64, 4)
EITHER = pytest.mark.parametrize("name", TILINGS)


def check(name: str, form: Form, counts: list[int], length: int, lines: int, quantisation: Quantisation) -> None:
    if not isinstance(TILINGS[name], Lanes):
        need_metal(form)
    mx.random.seed(lines)
    weight, numbers = given((lines, length), quantisation, form.dtype)
    x = mx.random.normal((max(counts), length)).astype(form.dtype)
    with mx.stream(mx.cpu):
        expected = x.astype(mx.float32) @ numbers.T
    for count in counts:
        result = quantized_matmul_by_kernel(x[:count], weight, TILINGS[name], form.launch)
        assert result.dtype == form.dtype
        assert error(result, expected[:count]) < form.bound


@EITHER
@EXACTLY
def test_rows(name: str, form: Form) -> None:
    check(name, form, [*range(1, 65), 130], 128, 5, FOUR_BITS)


@EXACTLY
@pytest.mark.parametrize("quantisation", QUANTISATIONS, ids=str)
@pytest.mark.parametrize("name", ["kernel, 4 words", "matrices, 2 words"])
def test_quantisations(name: str, form: Form, quantisation: Quantisation) -> None:
    check(name, form, [7], 512, 37, quantisation)


@EXACTLY
@pytest.mark.parametrize("quantisation", [Quantisation(32, 8), Quantisation(16, 4, "nvfp4")], ids=str)
@pytest.mark.parametrize("name", ["matrices", "matrices, right", "matrices, staged"])
def test_where_scales_lie(name: str, form: Form, quantisation: Quantisation) -> None:
    """The words that a lane reads of a line have one scale, or two."""
    check(name, form, [7], 256, 37, quantisation)


@EITHER
@EXACTLY
@pytest.mark.parametrize(("length", "lines"), [(1152, 1), (640, 33)])
@pytest.mark.parametrize("busy", [0, 4096])
def test_sizes(name: str, form: Form, length: int, lines: int, busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that are not whole tiles, and lengths that are not whole steps, shared by as few simdgroups and as many as
    there can be.
    """
    monkeypatch.setattr(tiling, "wave", lambda held: busy)
    check(name, form, [6], length, lines, FOUR_BITS)


@IN_HALF_PRECISION
@pytest.mark.parametrize("name", ["kernel", "matrices", "matrices, floats", "matrices, staged"])
def test_half_precision(name: str, form: Form) -> None:
    check(name, form, [11], 256, 24, FOUR_BITS)


@EITHER
@EXACTLY
@pytest.mark.parametrize("length", [64, 192])
def test_short_lines(name: str, form: Form, length: int) -> None:
    """Of one step, or of an odd number of them: each tiling takes such lines, or says that it does not."""
    if TILINGS[name].fits(length, FOUR_BITS):
        check(name, form, [2], length, 3, FOUR_BITS)
    else:
        assert length % 128


@pytest.mark.parametrize("quantisation", QUANTISATIONS, ids=str)
def test_the_reference_is_the_product_with_what_is_packed(quantisation: Quantisation) -> None:
    with mx.stream(mx.cpu):
        weight, numbers = given((24, 256), quantisation, mx.float32)
        x = mx.random.normal((5, 256))
        assert error(quantized_matmul(x, weight), x @ numbers.T) < 1e-5
