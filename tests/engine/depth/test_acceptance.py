"""Estimates of survival."""

from __future__ import annotations

import random

import pytest

from draftmill.engine.depth.acceptance import Survival


def teach(survival: Survival, chances: dict[str, float], rounds: int, depth: int = 8, seed: int = 0) -> None:
    source = random.Random(seed)
    for _ in range(rounds):
        survival.next_round()
        for key, chance in chances.items():
            accepted = 0
            while accepted < depth and source.random() < chance:
                accepted += 1
            survival.observe(key, depth, accepted)
    survival.next_round()


def test_first_guess_is_neutral_and_chances_fall():
    chances = Survival(15).chances("new", 15)
    assert 0.4 < chances[0] < 0.75
    assert chances == sorted(chances, reverse=True)


@pytest.mark.parametrize("chance", [0.2, 0.5, 0.8, 0.95])
def test_learns_the_chances_of_rows_and_starts_new_ones_from_them(chance: float):
    survival = Survival(15)
    teach(survival, {str(row): chance for row in range(16)}, rounds=60)
    for key in ("0", "new"):
        first, second, third = survival.chances(key, 3) if chance > 0.3 else [*survival.chances(key, 2), chance**3]
        assert first == pytest.approx(chance, abs=0.12)
        assert second == pytest.approx(chance**2, abs=0.15)
        assert third == pytest.approx(chance**3, abs=0.2)


def test_tells_rows_apart():
    survival = Survival(15)
    teach(survival, {"bad": 0.2, "good": 0.95, "other bad": 0.2, "other good": 0.95}, rounds=40)
    assert survival.chances("bad", 1)[0] < 0.45
    assert survival.chances("good", 4)[3] > 0.6


def test_what_lies_beyond_a_rejection_or_the_depth_tells_nothing():
    """Rows that are always rejected at the third position say nothing about the fourth, whatever their depth."""
    deep, shallow = Survival(8), Survival(8)
    for _ in range(50):
        for survival, depth in ((deep, 8), (shallow, 3)):
            survival.next_round()
            survival.observe("row", depth, 2)
    for survival in (deep, shallow):
        survival.next_round()
    assert deep.chances("row", 8) == shallow.chances("row", 8)
    assert deep.chances("row", 2)[1] > 0.8
    assert all(chance < 0.2 for chance in deep.chances("row", 8)[2:])


def test_an_unread_row_returns_to_the_others():
    survival = Survival(8)
    chances = {str(row): 0.9 for row in range(8)}
    teach(survival, {**chances, "bad": 0.1}, rounds=30)
    before = survival.chances("bad", 1)[0]
    teach(survival, chances, rounds=300)
    assert before < 0.5
    assert survival.chances("bad", 1)[0] > 0.8


def test_follows_a_change():
    survival = Survival(8)
    teach(survival, {"row": 0.95}, rounds=60)
    teach(survival, {"row": 0.1}, rounds=30)
    assert survival.chances("row", 1)[0] < 0.4
    teach(survival, {"row": 0.95}, rounds=30)
    assert survival.chances("row", 1)[0] > 0.75


def test_a_row_that_is_done_is_forgotten():
    survival = Survival(8)
    teach(survival, {"bad": 0.1, **{str(row): 0.9 for row in range(8)}}, rounds=30)
    survival.forget("bad")
    assert survival.chances("bad", 8) == survival.chances("new", 8)
