"""The quantised matrix product's kernel against products with the weight as it is without packing."""

from __future__ import annotations

import mlx.core as mx
import pytest

from draftmill.kernels.quantized_matmul import quantized_matmul, quantized_matmul_by_kernel

from .forms import EXACTLY, IN_HALF_PRECISION, Form


def check(form: Form, count: int, length: int, lines: int, group: int, bits: int) -> None:
    mx.random.seed(count)
    weight = mx.random.normal((lines, length)).astype(form.dtype)
    x = mx.random.normal((count, length)).astype(form.dtype)
    with mx.stream(mx.cpu):
        w, scales, biases = mx.quantize(weight, group, bits)
        long_x, long_scales, long_biases = (array.astype(mx.float32) for array in (x, scales, biases))
        expected = long_x @ mx.dequantize(w, long_scales, long_biases, group_size=group, bits=bits).T
        stock = quantized_matmul(long_x, w, long_scales, long_biases, group, bits)
    result = quantized_matmul_by_kernel(x, w, scales, biases, group, bits, form.launch)
    assert (result.shape, result.dtype) == (expected.shape, form.dtype)
    assert mx.allclose(stock, expected, 1e-4, 1e-4)
    assert float(mx.abs(result - expected).max() / mx.abs(expected).max()) < form.bound


@EXACTLY
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9, 16, 17, 31, 32, 33, 64])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64])
def test_rows(form: Form, count: int, bits: int, group: int) -> None:
    check(form, count, 320, 24, group, bits)


@EXACTLY
@pytest.mark.parametrize(("length", "lines"), [(64, 16), (256, 8), (512, 33), (1024, 5)])
@pytest.mark.parametrize("bits", [4, 8])
def test_sizes(form: Form, length: int, lines: int, bits: int) -> None:
    check(form, 7, length, lines, 64, bits)


@IN_HALF_PRECISION
def test_half_precision(form: Form) -> None:
    check(form, 13, 320, 24, 64, 4)
