"""The kernel that chooses tokens and its reference: the same tokens, of the set that a sort would leave."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from draftmill.kernels.choose import choose as choosing
from draftmill.kernels.choose.choose import Setting, choose, choose_by_kernel, fits, workspace
from draftmill.kernels.choose.cut import KEY_BITS, top_k, top_p
from tests.kernels.choose.definition import chi_squared, probabilities
from tests.kernels.forms import EXACTLY, IN_HALF_PRECISION, Form

CASES: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "random": lambda random, shape: 3 * random.standard_normal(shape),
    "far apart": lambda random, shape: 200 * random.standard_normal(shape),
    "ties": lambda random, shape: np.round(2 * random.standard_normal(shape)) / 2,
    "equal": lambda random, shape: np.full(shape, -7.25),
    "masked": lambda random, shape: np.where(random.random(shape) < 0.7, -np.inf, random.standard_normal(shape)),
    "one left": lambda random, shape: np.where(np.arange(shape[1]) == shape[1] // 2, 1.5, -np.inf),
    "none left": lambda random, shape: np.full(shape, -np.inf),
    "all but excluded": lambda random, shape: np.where(random.random(shape) < 0.5, -6e4, random.standard_normal(shape)),
}
SETTINGS = [
    Setting(),
    Setting(1.0),
    Setting(1 / 0.7, 0.8, 20),
    Setting(0.5, 1.0, 3),
    Setting(1.0, 1.0, 1),
    Setting(2.0, 1e-6),
    Setting(1.0, 0.35),
    Setting(0.6, 0.95, 600),
    Setting(1e5, 0.9, 5),
    Setting(0.5, 0.999, 1 << 31),
    Setting(1.0, min_p=0.02),
    Setting(1 / 0.7, 0.9, 20, min_p=0.1),
    Setting(1.0, 0.99, 700, min_p=0.3),
    Setting(1.0, 0.5, 0, min_p=1e-30),
    Setting(0.8, 0.9, min_p=1.0),
]


def logits_of(case: str, rows: int, vocabulary: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    made = CASES[case](np.random.default_rng(vocabulary), (1, vocabulary))
    return mx.array(np.broadcast_to(made, (rows, vocabulary)), mx.float32).astype(dtype)


@pytest.mark.parametrize("dtype", KEY_BITS, ids=str)
@pytest.mark.parametrize("case", ["random", "far apart", "ties", "equal", "masked", "one left"])
def test_the_cut_leaves_what_a_sort_would(case: str, dtype: mx.Dtype) -> None:
    logits = logits_of(case, 1, 777, dtype).astype(mx.float32)
    for k in (1, 2, 20, 776, 777):
        stay = top_k(logits, mx.array([[k]], mx.int32), KEY_BITS[dtype])
        expected = np.argsort(-np.array(logits)[0], kind="stable")[:k]
        assert np.flatnonzero(np.array(stay)[0]).tolist() == sorted(expected.tolist())
    weights = mx.exp(logits - logits.max())
    for p in (1e-6, 0.3, 0.9, 0.999):
        stay = np.array(top_p(logits, weights, mx.array([[p]]), KEY_BITS[dtype]))[0]
        assert (stay == (probabilities(np.array(logits)[0], Setting(1.0, p)) > 0)).all()


def check(form: Form, case: str, vocabulary: int, settings: list[Setting]) -> None:
    logits = logits_of(case, len(settings), vocabulary, form.dtype)
    positions = mx.arange(100, 100 + len(settings))
    assert fits(vocabulary, form.dtype)
    with mx.stream(mx.cpu):
        right = choose(logits, settings, positions)
    tokens = choose_by_kernel(logits, settings, positions, form.launch)
    assert (tokens.shape, tokens.dtype) == (right.shape, mx.int32)
    assert tokens.tolist() == right.tolist()
    exact = np.array(logits.astype(mx.float32))
    for token, row, setting in zip(np.array(tokens), exact, settings, strict=True):
        if setting.inverse == 0 or case == "none left":
            assert token == row.argmax()
        else:
            assert probabilities(row, setting)[token] > 0


def seeded(settings: list[Setting], seeds: int) -> list[Setting]:
    return [setting._replace(seed=997 * seed) for setting in settings for seed in range(seeds)]


@EXACTLY
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_draws_what_its_reference_draws(form: Form, case: str) -> None:
    check(form, case, 1000, seeded(SETTINGS, 3))


@EXACTLY
@pytest.mark.parametrize("vocabulary", [1, 6, 127, 513, 2501, 9000])
def test_vocabularies_of_any_size(form: Form, vocabulary: int) -> None:
    for case in ("random", "ties"):
        check(form, case, vocabulary, seeded(SETTINGS[:7], 1))


@IN_HALF_PRECISION
@pytest.mark.parametrize("case", ["random", "ties", "masked"])
def test_half_precision(form: Form, case: str) -> None:
    check(form, case, 1000, seeded(SETTINGS, 2))


@EXACTLY
@pytest.mark.parametrize(
    "setting",
    [
        Setting(1.0),
        Setting(1 / 1.7, 1.0, 3),
        Setting(1.0, 0.8),
        Setting(1.25, 0.9, 4),
        Setting(1.0, min_p=0.2),
        Setting(0.5, 0.9, 4, min_p=0.3),
    ],
    ids=str,
)
def test_draws_are_distributed_as_they_should(form: Form, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "THREADS", 32)  # of which few are needed here, and many draws
    draws, random = 2000, np.random.default_rng(11)
    logits = mx.array(1.5 * random.standard_normal((1, 6)), mx.float32).astype(form.dtype)
    tokens = choose_by_kernel(
        mx.repeat(logits, draws, axis=0), seeded([setting], draws), mx.full((draws,), 17), form.launch
    )
    value, bound = chi_squared(np.array(tokens), probabilities(np.array(logits.astype(mx.float32))[0], setting))
    assert value < bound


@EXACTLY
def test_a_few_rows_run_as_many_do(form: Form) -> None:
    """Rows that differ in everything, alone and together."""
    mx.random.seed(4)
    logits = 2 * mx.random.normal((9, 500)).astype(form.dtype)
    settings = seeded(SETTINGS[:9], 1)
    together = choose_by_kernel(logits, settings, mx.arange(9), form.launch)
    for m in (0, 2, 8):
        alone = choose_by_kernel(logits[m : m + 1], settings[m : m + 1], mx.array([m]), form.launch)
        assert alone.tolist() == [together[m].item()]


def test_draws_in_portions_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, settings = logits_of("random", 20, 300), seeded(SETTINGS[-10:], 2)
    whole = choose(logits, settings, mx.arange(20))
    monkeypatch.setattr(choosing, "WORKSPACE", 300 * choosing.BYTES_PER_LOGIT * 3)
    assert workspace(20, 300) == choosing.WORKSPACE
    assert workspace(2, 300) == 300 * choosing.BYTES_PER_LOGIT * 2
    assert choose(logits, settings, mx.arange(20)).tolist() == whole.tolist()


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU holds what a graph leaves until it has run")
def test_draws_stay_within_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "WORKSPACE", 1 << 24)
    logits, settings = logits_of("random", 64, 20_000, mx.bfloat16), [Setting(1 / 0.7, 0.8, 20, min_p=0.01)] * 64
    mx.eval(logits)
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(choose(logits, settings, mx.arange(64)))
    mx.synchronize()
    assert mx.get_peak_memory() - before < workspace(64, 20_000)
