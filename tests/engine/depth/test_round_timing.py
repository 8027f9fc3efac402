"""What rounds take beyond the model: learned by kind and size, not from interruptions, and not for ever."""

from __future__ import annotations

import pytest

from draftmill.engine.depth.budget import Budget
from draftmill.engine.depth.depth_choice import Candidate
from draftmill.engine.depth.round_timing import ENOUGH, LATEST, MEMORY, Forecast, Surcharges

from .simulation import BLOCK, H200


def forecast(tokens: int, drafting: bool = True, once: float = 0.0) -> Forecast:
    return Forecast(tokens, drafting, probe=False, seconds=0.010, plain=0.010, once=once)


def taught(tokens: int, seconds: float, drafting: bool = True, rounds: int = ENOUGH) -> Surcharges:
    surcharges = Surcharges()
    for _ in range(rounds):
        surcharges.learn(forecast(tokens, drafting), seconds)
    return surcharges


def test_few_rounds_and_interruptions_teach_nothing():
    assert taught(20, 0.015, rounds=ENOUGH - 1).of(True, 20) == 0
    surcharges = taught(20, 0.015, rounds=LATEST)
    for _ in range(LATEST // 2):
        surcharges.learn(forecast(20), 1.0)
    assert surcharges.of(True, 20) == pytest.approx(0.005)


def test_what_comes_once_is_left_out_and_no_round_is_free():
    surcharges = Surcharges()
    for _ in range(ENOUGH):
        surcharges.learn(forecast(20, once=0.020), 0.033)
        surcharges.learn(forecast(8, drafting=False), 0.001)
    assert surcharges.of(True, 20) == pytest.approx(0.003)
    assert surcharges.of(False, 8) == pytest.approx(-0.004)


def test_what_came_once_already_teaches_nothing():
    surcharges = taught(20, 0.013)
    for _ in range(LATEST):
        surcharges.learn(forecast(20, once=0.020), 0.012)
    assert surcharges.of(True, 20) == pytest.approx(0.003)
    assert surcharges.pace == 1


def test_what_was_not_timed_may_be_as_good_as_what_was_allows():
    surcharges = taught(100, 0.018)
    assert surcharges.of(True, 120) == surcharges.of(True, 500) == pytest.approx(0.008)
    assert surcharges.of(True, 50) == pytest.approx(0.004)
    for _ in range(ENOUGH):
        surcharges.learn(forecast(200), 0.020)
    assert surcharges.of(True, 150) == pytest.approx(0.009)
    assert surcharges.of(False, 100) == 0


def test_drafting_is_expected_to_take_what_rounds_without_drafts_do():
    surcharges = taught(32, 0.012, drafting=False)
    assert surcharges.of(True, 32) == surcharges.of(True, 100) == pytest.approx(0.002)
    assert taught(32, 0.005).of(True, 8) == pytest.approx(-0.004)


def test_a_machine_that_slows_down_teaches_nothing():
    surcharges = taught(100, 0.018, rounds=20)
    for _ in range(20):
        surcharges.learn(forecast(100), 0.036)
    assert surcharges.pace == pytest.approx(2)
    assert surcharges.of(True, 100) == pytest.approx(0.008)


def test_lists_rounds_by_drafted_tokens():
    surcharges = taught(100, 0.018)
    for _ in range(ENOUGH):
        surcharges.learn(forecast(8, drafting=False), 0.011)
    listed = surcharges.listed(8, 120)
    assert listed == [surcharges.of(n > 0, 8 + n) for n in range(121)]
    assert Surcharges().listed(8, 120) == []


def test_drafting_is_tried_again():
    surcharges = taught(20, 0.015)
    for _ in range(MEMORY + 1):
        surcharges.next_round()
    assert surcharges.of(True, 20) == 0


def test_what_rounds_take_without_drafts_is_asked_for_again():
    surcharges = taught(20, 0.015, drafting=False)
    assert surcharges.known(False, 20)
    for _ in range(MEMORY + 1):
        surcharges.next_round()
    for _ in range(ENOUGH):
        assert (surcharges.known(False, 20), surcharges.of(False, 20)) == (False, pytest.approx(0.005))
        surcharges.learn(forecast(20, drafting=False), 0.012)
    assert (surcharges.known(False, 20), surcharges.of(False, 20)) == (True, pytest.approx(0.002))


def test_a_probe_that_takes_long_delays_the_next():
    """Drafts are useless; every probe takes so much longer than its price."""
    rows = [Candidate(str(row), 1000, 500) for row in range(8)]
    probes: list[int] = []
    for overrun in (0.0, 0.2):
        budget, before, drafted, count = Budget(H200.measure(8, 0.0), BLOCK), None, [0] * 8, 0
        for _ in range(2000):
            depths = budget.depths(rows)
            now = budget.forecast
            assert now
            budget.ran(before, now, now.seconds + overrun * now.probe)
            for row, depth in zip(rows, drafted, strict=True):
                budget.observe(row.key, depth, 0)
            before, drafted = now, depths
            count += now.probe
        probes.append(count)
    assert 1 <= probes[1] < probes[0] / 2
