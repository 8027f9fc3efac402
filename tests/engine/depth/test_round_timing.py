"""What rounds take beyond the model: learned by kind and size, not from interruptions, and not for ever."""

from __future__ import annotations

import pytest

from draftmill.engine.depth.budget import Budget
from draftmill.engine.depth.depth_choice import Candidate
from draftmill.engine.depth.round_timing import ENOUGH, LATEST, MEMORY, Forecast, RoundTiming

from .simulation import BLOCK, H200


def forecast(tokens: int, drafting: bool = True, once: float = 0.0) -> Forecast:
    return Forecast(tokens, drafting, probe=False, seconds=0.010, plain=0.010, once=once)


def taught(tokens: int, seconds: float, drafting: bool = True, rounds: int = ENOUGH) -> RoundTiming:
    timing = RoundTiming()
    for _ in range(rounds):
        timing.learn(forecast(tokens, drafting), seconds)
    return timing


def test_few_rounds_and_interruptions_teach_nothing():
    assert taught(20, 0.015, rounds=ENOUGH - 1).of(True, 20) == 0
    timing = taught(20, 0.015, rounds=LATEST)
    for _ in range(LATEST // 2):
        timing.learn(forecast(20), 1.0)
    assert timing.of(True, 20) == pytest.approx(0.005)


def test_what_comes_once_is_left_out_and_no_round_is_free():
    timing = RoundTiming()
    for _ in range(ENOUGH):
        timing.learn(forecast(20, once=0.020), 0.033)
        timing.learn(forecast(8, drafting=False), 0.001)
    assert timing.of(True, 20) == pytest.approx(0.003)
    assert timing.of(False, 8) == pytest.approx(-0.004)


def test_what_came_once_already_teaches_nothing():
    timing = taught(20, 0.013)
    for _ in range(LATEST):
        timing.learn(forecast(20, once=0.020), 0.012)
    assert timing.of(True, 20) == pytest.approx(0.003)
    assert timing.pace == 1


def test_what_was_not_timed_may_be_as_good_as_what_was_allows():
    timing = taught(100, 0.018)
    assert timing.of(True, 120) == timing.of(True, 500) == pytest.approx(0.008)
    assert timing.of(True, 50) == pytest.approx(0.004)
    for _ in range(ENOUGH):
        timing.learn(forecast(200), 0.020)
    assert timing.of(True, 150) == pytest.approx(0.009)
    assert timing.of(False, 100) == 0


def test_drafting_is_expected_to_take_what_rounds_without_drafts_do():
    timing = taught(32, 0.012, drafting=False)
    assert timing.of(True, 32) == timing.of(True, 100) == pytest.approx(0.002)
    assert taught(32, 0.005).of(True, 8) == pytest.approx(-0.004)


def test_a_machine_that_slows_down_teaches_nothing():
    timing = taught(100, 0.018, rounds=20)
    for _ in range(20):
        timing.learn(forecast(100), 0.036)
    assert timing.pace == pytest.approx(2)
    assert timing.of(True, 100) == pytest.approx(0.008)


def test_lists_rounds_by_drafted_tokens():
    timing = taught(100, 0.018)
    for _ in range(ENOUGH):
        timing.learn(forecast(8, drafting=False), 0.011)
    listed = timing.listed(8, 120)
    assert listed == [timing.of(n > 0, 8 + n) for n in range(121)]
    assert RoundTiming().listed(8, 120) == []


def test_drafting_is_tried_again():
    timing = taught(20, 0.015)
    for _ in range(MEMORY + 1):
        timing.next_round()
    assert timing.of(True, 20) == 0


def test_what_rounds_take_without_drafts_is_asked_for_again():
    timing = taught(20, 0.015, drafting=False)
    assert timing.known(False, 20)
    for _ in range(MEMORY + 1):
        timing.next_round()
    for _ in range(ENOUGH):
        assert (timing.known(False, 20), timing.of(False, 20)) == (False, pytest.approx(0.005))
        timing.learn(forecast(20, drafting=False), 0.012)
    assert (timing.known(False, 20), timing.of(False, 20)) == (True, pytest.approx(0.002))


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
