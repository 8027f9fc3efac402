"""What rounds take beyond the calibration: learned by kind and size, not from interruptions, and not for ever."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from draftmill.engine.depth.budget import Budget
from draftmill.engine.depth.depth_choice import Candidate, DepthChoice
from draftmill.engine.depth.round_times import ENOUGH, MEMORY, Forecast, RoundTimes

from .simulation import BLOCK, H200


def taught(tokens: int, seconds: float, drafting: bool = True, rounds: int = 20) -> RoundTimes:
    return teach(RoundTimes(), tokens, seconds, drafting, rounds)


def teach(times: RoundTimes, tokens: int, seconds: float, drafting: bool = True, rounds: int = 20) -> RoundTimes:
    """Rounds that were calibrated at 10 ms took so long."""
    for _ in range(rounds):
        times.next_round()
        times.learn(Forecast(drafting, tokens, 0.010), seconds)
    return times


def excess(times: RoundTimes, tokens: int, drafting: bool = True) -> float:
    return times.excess(drafting, [tokens])[0]


def test_few_rounds_and_interruptions_teach_little():
    assert excess(taught(20, 0.015, rounds=ENOUGH - 1), 20) == 0
    times = taught(20, 0.015)
    assert excess(times, 20) == pytest.approx(0.005, rel=0.05)
    teach(times, 20, 1.0, rounds=1)
    assert excess(times, 20) == pytest.approx(0.005, rel=0.25)


def test_the_mean_of_noisy_rounds():
    times, chance = RoundTimes(), random.Random(1)
    for _ in range(200):
        times.next_round()
        times.learn(Forecast(True, 20, 0.010), 0.015 * chance.lognormvariate(0, 0.1))
    assert excess(times, 20) * times.pace == pytest.approx(0.005, abs=0.0015)


def test_rounds_that_were_calibrated_far_too_slow_take_some_time():
    """On a busy machine, say; or they are those of an earlier calibration."""
    times = taught(1, 0.0001, drafting=False, rounds=2000)
    assert -0.01 < excess(times, 1, drafting=False) < 0
    times.begin([[False, 1, -1.0, 9], [True, 4, -2.0, 9]])
    cost = H200.measure(4, noise=0)
    choice = DepthChoice(cost, BLOCK, [Candidate("a", 100, 50)], [[0.5, 0.2]], times=times)
    assert min(choice.rounds) > 0
    assert choice.best().rate > 0


def test_a_round_for_which_kernels_are_built_is_left_out():
    times = RoundTimes()
    for seconds in (1.0, *[0.013] * ENOUGH):
        times.learn(Forecast(True, 20, 0.010, building=True), seconds)
    assert excess(times, 20) == pytest.approx(0.003, rel=0.05)


def test_what_was_not_timed_may_be_as_good_as_what_was_allows():
    times = taught(100, 0.018)
    assert excess(times, 120) == excess(times, 500) == pytest.approx(0.008, rel=0.05)
    assert excess(times, 50) == pytest.approx(0.004, rel=0.05)
    assert excess(times, 100, drafting=False) == 0
    teach(times, 200, 0.020)
    assert times.excess(True, [50, 150]) == [pytest.approx(0.004, rel=0.05), pytest.approx(0.009, rel=0.05)]


def test_drafting_is_expected_to_take_what_rounds_without_drafts_do():
    times = taught(32, 0.012, drafting=False)
    assert excess(times, 32) == excess(times, 100) == pytest.approx(0.002, rel=0.05)
    assert excess(taught(32, 0.008), 8) == pytest.approx(-0.002, rel=0.05)


def test_a_machine_that_slows_down_teaches_little():
    times = taught(100, 0.018)
    teach(times, 100, 0.036)
    assert times.pace == pytest.approx(2, rel=0.1)
    assert excess(times, 100) == pytest.approx(0.008, rel=0.2)
    assert times.expected(Forecast(True, 100, 0.010)) == pytest.approx(0.036, rel=0.05)


def test_what_was_learned_long_ago_gives_way_and_drafting_is_tried_again():
    plain, drafting = taught(20, 0.015, drafting=False), taught(20, 0.015)
    for times in (plain, drafting):
        for _ in range(MEMORY + 1):
            times.next_round()
    assert excess(plain, 20, drafting=False) == pytest.approx(0.005, rel=0.05)
    teach(plain, 20, 0.012, drafting=False, rounds=4)
    assert excess(plain, 20, drafting=False) == pytest.approx(0.002, rel=0.35)
    assert excess(drafting, 20) == 0


def test_another_start_goes_on_from_there_at_its_own_pace():
    before = teach(taught(100, 0.018), 8, 0.011, drafting=False)
    after = RoundTimes()
    after.begin(before.to_list())
    for drafting, tokens in ((True, 100), (True, 60), (False, 8)):
        assert excess(after, tokens, drafting) == pytest.approx(excess(before, tokens, drafting))
    teach(after, 100, 0.027)
    assert after.pace == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize("bound_by_host", [False, True])
def test_a_single_round_among_others_is_timed(bound_by_host: bool):
    """Whether a round's time shows until it has been read, or while the next one is built."""
    budget = Budget(H200.measure(1, 0.0), BLOCK)
    plain, drafting = Forecast(False, 1, 0.010), Forecast(True, 8, 0.012)
    rounds = ([plain] * 10 + [drafting]) * 6
    for read, launched in pairwise(rounds):
        budget.times.next_round()
        slow = launched if bound_by_host else read
        budget.ran(read, launched, 0.020 if slow.drafting else 0.010)
    assert excess(budget.times, 8) == pytest.approx(0.008, rel=0.1)
    assert excess(budget.times, 1, drafting=False) == pytest.approx(0.0, abs=0.0005)


def test_trials_that_take_long_become_rarer():
    """Drafts are useless; every trial takes so much longer than it was calibrated."""
    rows = [Candidate(str(row), 1000, 500) for row in range(8)]
    trials: list[int] = []
    for overrun in (0.0, 0.01):
        budget, before, drafted, count = Budget(H200.measure(8, 0.0), BLOCK), None, [0] * 8, 0
        for _ in range(2000):
            depths = budget.depths(rows)
            now = budget.forecast
            assert now
            budget.ran(before, now, before.seconds + overrun * before.drafting if before else now.seconds)
            for row, depth in zip(rows, drafted, strict=True):
                budget.observe(row.key, depth, 0)
            before, drafted = now, depths
            count += any(depths)
        trials.append(count)
    assert 1 <= trials[1] < trials[0] / 2
