"""The quantised matrix product's kernels against products with the weight as it is without packing."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from draftmill.kernels.products.quantized_matmul import quantized_matmul, quantized_matmul_by_kernel
from draftmill.kernels.products.quantized_matmul_simdgroup import FEW_LINES, quantized_matmul_by_simdgroups
from tests.kernels.forms import EXACTLY, IN_HALF_PRECISION, Form, need_metal

Version = Callable[..., mx.array]

EITHER = pytest.mark.parametrize(
    "version",
    [
        pytest.param(quantized_matmul_by_kernel, id="portable"),
        pytest.param(quantized_matmul_by_simdgroups, id="simdgroup"),
    ],
)


def check(version: Version, form: Form, count: int, length: int, lines: int, group: int, bits: int) -> None:
    if version is quantized_matmul_by_simdgroups:
        need_metal(form)
    mx.random.seed(count)
    weight = mx.random.normal((lines, length)).astype(form.dtype)
    x = mx.random.normal((count, length)).astype(form.dtype)
    with mx.stream(mx.cpu):
        w, scales, biases = mx.quantize(weight, group, bits)
        long_x, long_scales, long_biases = (array.astype(mx.float32) for array in (x, scales, biases))
        expected = long_x @ mx.dequantize(w, long_scales, long_biases, group_size=group, bits=bits).T
        stock = quantized_matmul(long_x, w, long_scales, long_biases, group, bits)
    result = version(x, w, scales, biases, group, bits, form.launch)
    assert (result.shape, result.dtype) == (expected.shape, form.dtype)
    assert mx.allclose(stock, expected, 1e-4, 1e-4)
    assert float(mx.abs(result - expected).max() / mx.abs(expected).max()) < form.bound


@EITHER
@EXACTLY
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 130])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64])
def test_rows(version: Version, form: Form, count: int, bits: int, group: int) -> None:
    check(version, form, count, 320, 24, group, bits)


@EITHER
@EXACTLY
@pytest.mark.parametrize(
    ("length", "lines", "group"),
    [(32, 1, 32), (64, 16, 64), (256, 8, 32), (512, 33, 64), (1024, 5, 64), (64, FEW_LINES + 7, 32)],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_sizes(version: Version, form: Form, length: int, lines: int, group: int, bits: int) -> None:
    for count in (5, 7):
        check(version, form, count, length, lines, group, bits)


@EITHER
@EXACTLY
@pytest.mark.parametrize("seed", range(5))
def test_random_shapes(version: Version, form: Form, seed: int) -> None:
    rng = np.random.default_rng(seed)
    group, bits = int(rng.choice([32, 64])), int(rng.choice([4, 8]))
    length, lines = group * int(rng.integers(1, 9)), int(rng.integers(1, 70))
    for count in rng.integers(1, 70, size=24):
        check(version, form, int(count), length, lines, group, bits)


@EITHER
@IN_HALF_PRECISION
@pytest.mark.parametrize(("count", "lines", "bits"), [(3, 24, 8), (13, 24, 4), (64, 40, 4), (9, FEW_LINES, 4)])
def test_half_precision(version: Version, form: Form, count: int, lines: int, bits: int) -> None:
    check(version, form, count, 320 if lines < FEW_LINES else 64, lines, 64, bits)
