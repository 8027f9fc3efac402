"""Pools of pages: what is written at places is found there, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from draftmill.kernels.gpu.source import Input, Kernel, Launch, Memory
from draftmill.kernels.pages.places import Places, tabled
from draftmill.kernels.pages.pool import LayerPool, Rows
from draftmill.kernels.pages.proof import flaw
from draftmill.kernels.pages.sizes import PAGE
from tests.kernels.emulator import on_cpu
from tests.kernels.forms import EMULATED, EXACTLY, IN_HALF_PRECISION, Form

HEADS, DIM = 3, 20


def check(launch: Launch | None, dtype: mx.Dtype, seed: int) -> None:
    """Random writes into rows with pages in any order, against NumPy."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(9).tolist()
    pages = [order[:2], order[2:5], order[5:6]]
    table, firsts = tabled(pages)
    pool = LayerPool(7, HEADS, DIM, dtype, launch)
    expected = np.zeros((2, 9 * 64, HEADS, DIM), np.float32)
    for turn in range(4):
        if turn == 1:
            pool.grow(9)
        rows = rng.integers(0, 3, 12).tolist()
        reach = [len(own) * 64 if turn else 64 * min(len(own), 1) for own in pages]
        places = sorted({(row, int(rng.integers(0, reach[row]))) for row in rows})
        if not turn:
            places = [(row, position) for row, position in places if pages[row][position // 64] < 7]
        if not places:
            continue
        starts = mx.array([firsts[row] for row, _ in places], mx.int32)
        positions = mx.array([position for _, position in places], mx.int32)
        new = [mx.array(rng.normal(size=(len(places), HEADS, DIM)), mx.float32).astype(dtype) for _ in range(2)]
        pool.write(Places(table, starts, positions), *new)
        slots = [pages[row][position // 64] * 64 + position % 64 for row, position in places]
        expected[:, slots] = [np.array(array.astype(mx.float32)) for array in new]
    held = [np.array(array.astype(mx.float32)) for array in (pool.keys, pool.values)]
    assert np.array_equal(held, expected)
    lengths = [100, 150, 40]
    gathered = pool.gather(Rows.of(pages, lengths), 160, {})
    for array, all_slots in zip(gathered, expected, strict=True):
        assert array.shape == (3, HEADS, 160, DIM)
        for row, length in enumerate(lengths):
            slots = [pages[row][position // 64] * 64 + position % 64 for position in range(length)]
            found = np.array(array[row, :, :length].astype(mx.float32))
            assert np.array_equal(found, all_slots[slots].swapaxes(0, 1))


@pytest.mark.parametrize("seed", range(3))
def test_scattering(seed: int) -> None:
    check(None, mx.float32, seed)


@EXACTLY
@pytest.mark.parametrize("seed", range(3))
def test_writing_in_place(form: Form, seed: int) -> None:
    check(form.launch, form.dtype, seed)


@IN_HALF_PRECISION
def test_writing_half_precision_in_place(form: Form) -> None:
    check(form.launch, form.dtype, 7)


@EXACTLY
def test_a_pool_stays_where_it_is(form: Form) -> None:
    """Whatever still has to read it."""
    pool = LayerPool(2, HEADS, DIM, form.dtype, form.launch)
    held = pool.arrays
    table, _ = tabled([[1, 0]])
    one = mx.ones((1, HEADS, DIM), form.dtype)
    for position in range(70):
        pool.write(Places(table, mx.zeros(1, mx.int32), mx.array([position], mx.int32)), one, one)
    mx.eval(pool.after)
    assert [a is b for a, b in zip(pool.arrays, held, strict=True)] == [True, True]
    assert float(pool.keys.astype(mx.float32).sum()) == 70 * HEADS * DIM


@EXACTLY
def test_the_proof_is_that_of_a_sound_machine(form: Form) -> None:
    assert flaw(form.launch) is None


@EMULATED
def test_the_proof_sees_a_write_that_goes_elsewhere() -> None:
    def copying(kernel: Kernel, inputs: Sequence[Input], *rest: Any) -> list[mx.array]:
        if kernel.name == "store":  # as if MLX had handed the kernel a copy of the pool
            pools = [each for each in inputs if isinstance(each, Memory)]
            inputs = [*(Memory.of(mx.array(np.array(pool.whole)), PAGE) for pool in pools), *inputs[len(pools) :]]
        return on_cpu(kernel, inputs, *rest)

    assert flaw(copying) == "round 1 of 12 read other keys than it wrote"


def test_the_proof_tells_why_a_kernel_does_not_run() -> None:
    def failing(*given: Any) -> list[mx.array]:
        raise RuntimeError("no such device\nand more")

    assert flaw(failing) == "it fails: no such device"
