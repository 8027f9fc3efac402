"""The bench's proof of state: a sound session has no flaw, a planted fault is one, and fails the cell."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from draftmill.engine.bench.arms import Draftmill, EngineSession
from draftmill.engine.bench.measure import steady, whole
from draftmill.engine.bench.proof import groups
from draftmill.engine.bench.synthetic import Synthetic
from tests.engine.planted import ShiftedMask, ahead, one_place, open_session, spoil

SHAPES = ("tiny-qwen3", "tiny-qwen3.5", "tiny-qwen3.5-moe")


@pytest.fixture(scope="module", params=SHAPES)
def bench(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return Synthetic(request.param, 16, tmp_path_factory.mktemp("bench"))


def decode(session: EngineSession) -> str | None:
    for _ in range(4):
        session.advance()
    return session.flaw()


def test_a_sound_session_has_no_flaw(bench: Synthetic) -> None:
    for seed in range(3):
        session = open_session(bench, 3, 40, seed)
        assert decode(session) is None
        session.close()


@pytest.mark.parametrize("plant", [one_place, ahead])
def test_a_wrong_rotation_is_a_flaw(bench: Synthetic, plant: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(bench.target, "turns", plant(bench.target))
    assert "attention layer 0, keys" in (decode(open_session(bench, 3, 40, 0)) or "")


@pytest.mark.parametrize("by", [1, -1])
def test_a_wrong_mask_is_a_flaw(bench: Synthetic, by: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench.target, "operations", ShiftedMask(by=by))
    assert "are off by" in (decode(open_session(bench, 3, 40, 0)) or "")


def test_a_stale_slot_is_a_flaw(bench: Synthetic) -> None:
    for seed in range(6):
        session = open_session(bench, 3, 40, seed)
        assert decode(session) is None
        spoil(session, random.Random(seed))
        assert "attention layer" in (session.flaw() or "")
        session.close()


@pytest.mark.parametrize("measure", ["steady", "whole"])
def test_a_flaw_fails_the_cell(measure: str, monkeypatch: Any, tmp_path: Path) -> None:
    bench = Synthetic("tiny-qwen3", 16, tmp_path)
    requests = bench.rows(2, 32, 24, (3,), 1)
    continuation = bench.continuation(requests, (3,))
    arms: Any = {"full-depth": lambda: Draftmill(lambda: bench.engine(2, 512, continuation, bench.block - 1))}
    monkeypatch.setattr(bench.target, "turns", one_place(bench.target))
    expected = bench.expected(continuation)
    cells = steady(arms, requests, 24, 1, expected) if measure == "steady" else whole(arms, requests, 1, expected)
    assert "attention layer 0, keys" in (cells["full-depth"].error or "")
    assert not cells["full-depth"].samples


def test_groups_double() -> None:
    assert list(groups(3)) == [(0, 3)]
    assert list(groups(40)) == [(0, 4), (4, 8), (8, 16), (16, 32), (32, 40)]
