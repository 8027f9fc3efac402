"""The kernel of a residual sum and its norm, against its reference."""

from __future__ import annotations

import mlx.core as mx
import pytest

from draftmill.kernels.fused.add_norm import add_norm, add_norm_by_kernel, fits
from tests.kernels.forms import EXACTLY, IN_HALF_PRECISION, Form


def check(form: Form, count: int, size: int) -> None:
    mx.random.seed(size + count)
    x, y = (mx.random.normal((count, size)).astype(form.dtype) for _ in range(2))
    weight = mx.random.uniform(0.5, 1.5, (size,)).astype(form.dtype)
    assert fits(x)
    with mx.stream(mx.cpu):
        exact = [array.astype(mx.float32) for array in (x, y, weight)]
        expected = add_norm(exact[0], exact[1], exact[2], 1e-6)
    for result, right in zip(add_norm_by_kernel(x, y, weight, 1e-6, form.launch), expected, strict=True):
        assert (result.shape, result.dtype) == (right.shape, form.dtype)
        error = mx.abs(result.astype(mx.float32) - right).max() / mx.abs(right).max()
        assert float(error) < form.bound


@EXACTLY
@pytest.mark.parametrize("count", [1, 3, 17])
@pytest.mark.parametrize("size", [4, 64, 576, 1020, 1024, 2560])
def test_the_kernel_agrees(form: Form, count: int, size: int) -> None:
    check(form, count, size)


@IN_HALF_PRECISION
def test_half_precision(form: Form) -> None:
    check(form, 4, 576)
