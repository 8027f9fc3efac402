"""Estimates of acceptance."""

from __future__ import annotations

import random

import pytest

from draftmill.engine.depth.acceptance import Acceptance


def teach(acceptance: Acceptance, chances: dict[str, float], rounds: int, depth: int = 8, seed: int = 0) -> None:
    source = random.Random(seed)
    for _ in range(rounds):
        acceptance.next_round()
        for key, chance in chances.items():
            accepted = 0
            while accepted < depth and source.random() < chance:
                accepted += 1
            acceptance.observe(key, depth, accepted)
    acceptance.next_round()


def test_first_guess_is_neutral_and_chances_fall():
    chances = Acceptance(15).chances("new", 15)
    assert 0.4 < chances[0] < 0.75
    assert chances == sorted(chances, reverse=True)


@pytest.mark.parametrize("chance", [0.2, 0.5, 0.8, 0.95])
def test_learns_the_chances_of_rows_and_starts_new_ones_from_them(chance: float):
    acceptance = Acceptance(15)
    teach(acceptance, {str(row): chance for row in range(16)}, rounds=60)
    for key in ("0", "new"):
        first, second, third = acceptance.chances(key, 3) if chance > 0.3 else [*acceptance.chances(key, 2), chance**3]
        assert first == pytest.approx(chance, abs=0.12)
        assert second == pytest.approx(chance**2, abs=0.15)
        assert third == pytest.approx(chance**3, abs=0.2)


def test_tells_rows_apart():
    acceptance = Acceptance(15)
    teach(acceptance, {"bad": 0.2, "good": 0.95, "other bad": 0.2, "other good": 0.95}, rounds=40)
    assert acceptance.chances("bad", 1)[0] < 0.45
    assert acceptance.chances("good", 4)[3] > 0.6


def test_what_lies_beyond_a_rejection_or_the_depth_tells_nothing():
    """Rows that are always rejected at the third position say nothing about the fourth, whatever their depth."""
    deep, shallow = Acceptance(8), Acceptance(8)
    for _ in range(50):
        for acceptance, depth in ((deep, 8), (shallow, 3)):
            acceptance.next_round()
            acceptance.observe("row", depth, 2)
    for acceptance in (deep, shallow):
        acceptance.next_round()
    assert deep.chances("row", 8) == shallow.chances("row", 8)
    assert deep.chances("row", 2)[1] > 0.8
    assert all(chance < 0.2 for chance in deep.chances("row", 8)[2:])


def test_an_unread_row_returns_to_the_others():
    acceptance = Acceptance(8)
    chances = {str(row): 0.9 for row in range(8)}
    teach(acceptance, {**chances, "bad": 0.1}, rounds=30)
    before = acceptance.chances("bad", 1)[0]
    teach(acceptance, chances, rounds=300)
    assert before < 0.5
    assert acceptance.chances("bad", 1)[0] > 0.8


def test_follows_a_change():
    acceptance = Acceptance(8)
    teach(acceptance, {"row": 0.95}, rounds=60)
    teach(acceptance, {"row": 0.1}, rounds=30)
    assert acceptance.chances("row", 1)[0] < 0.4
    teach(acceptance, {"row": 0.95}, rounds=30)
    assert acceptance.chances("row", 1)[0] > 0.75


def test_a_row_that_is_done_is_forgotten():
    acceptance = Acceptance(8)
    teach(acceptance, {"bad": 0.1, **{str(row): 0.9 for row in range(8)}}, rounds=30)
    acceptance.forget("bad")
    assert acceptance.chances("bad", 8) == acceptance.chances("new", 8)
