"""Changed logits under speculation: the right distribution, the history that each slot has, portions and memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from draftmill.engine.choose import change as changing
from draftmill.engine.choose.change import BYTES_PER_LOGIT, Change, Slot, choose_changed
from draftmill.engine.choose.sampling import choose, setting
from draftmill.engine.choose.verify import accept
from draftmill.engine.request import Request, Sampling
from tests.engine.processors import processed
from tests.kernels.choose import definition
from tests.kernels.choose.definition import chi_squared

VOCABULARY, DRAWS, AT_ONCE = 6, 20_000, 500

PROMPT, GENERATED = (1, 4), (2, 2, 3)

SETTINGS: list[dict[str, Any]] = [
    dict(temperature=1.0, presence_penalty=1.0),
    dict(temperature=0.8, frequency_penalty=0.6),
    dict(temperature=1.0, repetition_penalty=1.8, min_p=0.05),
    dict(temperature=1.2, repetition_penalty=1.3, frequency_penalty=-0.4, top_k=4, logit_bias=((5, 1.5), (0, -1.0))),
]


def change_of(sampling: Sampling) -> Change:
    """What a row changes that has generated these tokens behind the prompt."""
    history = np.zeros(VOCABULARY, np.int32)
    history[list(PROMPT)] = 1
    for token in GENERATED:
        history[token] += 2
    bias = np.zeros(VOCABULARY, np.float32)
    for token, value in sampling.logit_bias:
        bias[token] = value
    penalties = sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty
    return Change(mx.array(bias), mx.array(history), *penalties)


def probabilities(logits: mx.array, sampling: Sampling, drafts: tuple[int, ...]) -> np.ndarray:
    """Of the token behind these drafts, by mlx-lm's processors and the definition of a draw."""
    request = Request("r", PROMPT, sampling)
    made = processed(request, [*GENERATED, *drafts], logits[None], frozenset())
    return definition.probabilities(np.array(made[0]), setting(sampling))


@pytest.mark.parametrize("parameters", SETTINGS, ids=str)
@pytest.mark.parametrize("draft", ["close", "far"])
def test_emitted_tokens_are_distributed_as_the_target_with_penalties(parameters: dict[str, Any], draft: str) -> None:
    mx.random.seed(11)
    target = 1.5 * mx.random.normal((3, VOCABULARY))
    drafting = target[:2] + {"close": 0.3, "far": 2.0}[draft] * mx.random.normal((2, VOCABULARY))
    samplings = [Sampling(seed=seed, **parameters) for seed in range(DRAWS)]
    change = change_of(samplings[0])

    def emitted(rows: list[Sampling]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [rows, 3] and how many of them count [rows]."""
        count = len(rows)
        twice = [sampling for sampling in rows for _ in range(2)]
        both = mx.tile(mx.array([17, 18]), count)
        drafted = choose_changed(mx.tile(drafting, (count, 1)), twice, both, [Slot(change)] * 2 * count, None)
        slots = [Slot(change, range(2 * m, 2 * m + j)) for m in range(count) for j in range(3)]
        positions, logits = mx.full((count,), 17, mx.int32), mx.tile(target, (count, 1))
        accepted = accept(logits, drafted, [2] * count, rows, positions, slots=slots)
        return np.array(accepted[0]), np.array(accepted[1])

    parts = [emitted(samplings[begin : begin + AT_ONCE]) for begin in range(0, DRAWS, AT_ONCE)]
    tokens, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
    checked = 0
    for slot in range(3):
        for before in product(range(VOCABULARY), repeat=slot):
            # Whether a slot is reached does not depend on what it then emits, but what it emits on what came before.
            reached = tokens[(counts > slot) & (tokens[:, :slot] == before).all(axis=1), slot]
            if len(reached) > 500:
                value, bound = chi_squared(reached, probabilities(target[slot], samplings[0], before))
                assert value < bound, (slot, before, value, bound)
                checked += 1
    assert checked > 5


def everything(slots: int, vocabulary: int) -> tuple[mx.array, list[Sampling], list[Slot], mx.array]:
    """Logits whose slots change them in every way, rows of depth 1, whose drafts are the last tokens."""
    mx.random.seed(2)
    logits = 3 * mx.random.normal((slots, vocabulary))
    history = mx.random.randint(0, 5, (vocabulary,))
    change = Change(mx.random.normal((vocabulary,)), history, 1.2, 0.3, 0.2, tuple(range(9)), 10**6)
    mask = bytes([0b11110111]) * -(-vocabulary // 8)
    samplings = [Sampling(temperature=0.9, top_k=30, seed=s) for s in range(slots)]
    made = [Slot(change, range(s // 2, s // 2 + s % 2), mask) for s in range(slots)]
    return logits, samplings, made, mx.arange(slots // 2)


def test_portions_choose_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, samplings, slots, drafts = everything(20, 300)
    whole = choose_changed(logits, samplings, mx.arange(20), slots, drafts)
    monkeypatch.setattr(changing, "PORTION", 300 * BYTES_PER_LOGIT * 3)
    assert choose_changed(logits, samplings, mx.arange(20), slots, drafts).tolist() == whole.tolist()


def test_slots_without_changes_choose_as_alone() -> None:
    logits, samplings, slots, drafts = everything(20, 300)
    some = [slot if s % 3 else Slot() for s, slot in enumerate(slots)]
    alone = choose(logits, samplings, mx.arange(20))
    mixed = choose_changed(logits, samplings, mx.arange(20), some, drafts)
    changed = choose_changed(logits, samplings, mx.arange(20), slots, drafts)
    assert mixed.tolist() == [(changed if s % 3 else alone)[s].item() for s in range(20)]


def test_half_precision_does_not_swallow_small_changes() -> None:
    logits = mx.full((1, 4), 20.0, mx.bfloat16)  # where 0.1 is less than a step
    bias = mx.array([0.0, 0.0, 0.1, 0.0])
    (token,) = np.array(choose_changed(logits, [Sampling()], mx.array([0]), [Slot(Change(bias))], None))
    assert token == 2


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU holds what a graph leaves until it has run")
def test_changes_stay_within_their_portion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changing, "PORTION", 1 << 24)
    logits, samplings, slots, drafts = everything(64, 20_000)
    samplings = [replace(sampling, temperature=0.0) for sampling in samplings]  # what draws take is `choose`'s
    mx.eval(logits, drafts, slots[0].change.bias, slots[0].change.history)  # type: ignore[union-attr] -- it has a change
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(choose_changed(logits, samplings, mx.arange(64), slots, drafts))
    mx.synchronize()
    assert mx.get_peak_memory() - before < changing.PORTION
