"""Depths that the row budget chooses, one round at a time and over simulated work."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from operator import truediv
from statistics import mean

import pytest

from draftmill.engine.depth.budget import Budget
from draftmill.engine.depth.depth_choice import Candidate, Chosen, DepthChoice
from draftmill.engine.depth.ladder import rung
from draftmill.engine.depth.round_cost import Cost, Curve

from .simulation import (
    BLOCK,
    BUSY_HOST,
    H200,
    HOST_BOUND,
    M4_PRO,
    M5_MAX,
    MACHINES,
    PLANNING,
    REFERENCE_BLAS,
    Machine,
    differing,
    drifting,
    equal,
    hindsight,
    jobs,
    mixed,
    switching,
    turning,
    work,
)

DEPTHS = (0, 1, 2, 3, 5, 7, 11, 15)


@cache
def measured(machine: Machine, rows: int) -> Cost:
    return machine.measure(rows, noise=0.02)


def choice(machine: Machine, chances: list[float], left: int = 1000, prompt: int = 0) -> DepthChoice:
    rows = [Candidate(str(row), left, 600) for row in range(len(chances))]
    survival = [[chance**place for place in range(1, min(left, BLOCK))] for chance in chances]
    return DepthChoice(measured(machine, len(rows)), BLOCK, rows, survival, prompt)


def ratio(machine: Machine, rows: int, chance: Callable[[int, float], float], count: int) -> float:
    """Tokens per second over those of the best fixed depth."""
    requests = jobs(count, chance)
    budget = Budget(measured(machine, rows), BLOCK)
    return work(machine, rows, requests, budget).rate / hindsight(machine, rows, requests, DEPTHS).rate


def test_one_good_row_drafts_deep_and_useless_drafts_are_not_verified():
    assert choice(H200, [0.95]).best().depths == [15]
    assert choice(H200, [0.02]).best().depths == [0]
    assert choice(M4_PRO, [0.6] * 64).best().depths == [0] * 64


def test_drafts_of_good_rows_only():
    depths = choice(M5_MAX, [0.95, 0.95, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]).best().depths
    assert min(depths[:2]) >= 4
    assert depths[2:] == [0] * 6


def test_limits_of_rows():
    depths = choice(H200, [0.9] * 4, left=3).best().depths
    assert max(depths) <= 2
    assert Budget(measured(H200, 1), BLOCK).depths([Candidate("row", 1, 100)]) == [0]
    assert Budget(measured(H200, 1), BLOCK).depths([]) == []


def test_a_prompt_in_the_round_is_no_reason_to_draft_more():
    for machine in MACHINES:
        alone, beside = (sum(choice(machine, [0.8] * 4, prompt=prompt).best().depths) for prompt in (0, 512))
        assert beside <= alone


def test_rounds_of_a_size_that_was_there_before_are_preferred():
    """As long as they are nearly as good: with the price of a first time come fewer sizes, and hardly fewer tokens."""
    cost = measured(H200, 16)
    rates: dict[float, list[float]] = {0.0: [], 0.02: []}
    sizes: dict[float, list[int]] = {0.0: [], 0.02: []}
    for count in (48, 64, 80, 96, 112):
        requests = jobs(count, differing(0.2, 0.95))
        for first in rates:
            budget = Noting(Cost(cost.round, cost.draft, first), BLOCK)
            rates[first].append(work(H200, 16, requests, budget).rate)
            sizes[first].append(len(budget.sizes))
    assert sum(sizes[0.02]) < 0.7 * sum(sizes[0.0])
    assert mean(map(truediv, rates[0.02], rates[0.0])) > 0.98


class Noting(Budget):
    """Notes how many tokens its rounds have."""

    def __init__(self, cost: Cost, block: int):
        super().__init__(cost, block)
        self.sizes: set[int] = set()

    def depths(
        self, rows: Sequence[Candidate], prompt: int = 0, cut: Callable[[list[int]], list[int]] = list
    ) -> list[int]:
        depths = super().depths(rows, prompt, cut)
        self.sizes.add(len(rows) + prompt + sum(depths))
        return depths


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 24])
def test_close_to_exhaustive_search(machine: Machine, rows: int):
    """Every number of the best rows, and every prefix of their tokens."""
    source = random.Random(rows)
    for _ in range(4):
        low, high = sorted((source.uniform(0.02, 0.97), source.uniform(0.02, 0.97)))
        here = choice(machine, sorted((source.uniform(low, high) for _ in range(rows)), reverse=True))
        best = rows / here.seconds(0, 0)
        for drafting in range(1, rows + 1):
            values = sorted((value for own in here.chances[:drafting] for value in own), reverse=True)
            tokens = float(rows)
            for taken, value in enumerate(values, 1):
                tokens += value
                best = max(best, tokens / here.seconds(taken, drafting))
        found: Chosen = here.best()
        tokens = rows + sum(sum(own[:depth]) for own, depth in zip(here.chances, found.depths, strict=True))
        drafting = sum(depth > 0 for depth in found.depths)
        assert found.tokens == pytest.approx(tokens)
        assert found.rate <= tokens / here.seconds(sum(found.depths), drafting) + 1e-9
        assert found.rate > 0.98 * best


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_where_each_token_takes_a_pass_the_deepest_row_pays_for_all(machine: Machine, rows: int):
    """Every combination of depths up to 3."""
    source, cost = random.Random(rows), measured(machine, rows)
    plain = cost.round.at(1)
    for share in (0.02, 0.3):
        step = Curve((1,), (share * plain,), 0.0, 0.0, 0.0, 0.0)
        for _ in range(4):
            odds = [source.uniform(0.2, 0.95) for _ in range(rows)]
            chances = [[own**i for i in (1, 2, 3)] for own in odds]
            candidates = [Candidate(str(i), 9, 256) for i in range(rows)]
            here = DepthChoice(Cost(cost.round, cost.draft, step=step), 4, candidates, chances)

            def rate(depths: Sequence[int], here: DepthChoice = here) -> float:
                tokens = rows + sum(sum(own[:depth]) for own, depth in zip(here.chances, depths, strict=True))
                return tokens / here.seconds(sum(depths), sum(depth > 0 for depth in depths), max(depths))

            found = here.best()
            assert found.rate == pytest.approx(rate(found.depths))
            assert found.rate > 0.97 * max(map(rate, itertools.product(range(4), repeat=rows)))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("kind", ["poor", "good", "drifting"])
def test_within_3_percent_of_the_best_fixed_depth(machine: Machine, rows: int, kind: str):
    count = 16 if rows == 1 else 32
    chance = {"poor": equal(0.35), "good": equal(0.85), "drifting": drifting(0.2, 0.95, count)}[kind]
    assert ratio(machine, rows, chance, count) > 0.97


def test_beats_every_fixed_depth_where_rows_differ():
    assert ratio(M5_MAX, 8, differing(0.2, 0.95), 40) > 1.02
    assert ratio(H200, 64, differing(0.2, 0.95), 96) > 1.05
    assert ratio(M5_MAX, 8, turning(0.2, 0.95), 32) > 1.05


@pytest.mark.parametrize("machine", [*MACHINES, REFERENCE_BLAS], ids=lambda machine: machine.name)
@pytest.mark.parametrize("rows", [1, 8, 32])
def test_a_useless_draft_costs_little_from_the_start(machine: Machine, rows: int):
    requests = jobs(rows, equal(0.01), lengths=(200, 200))
    budget = Budget(measured(machine, rows), BLOCK)
    assert work(machine, rows, requests, budget).rate > 0.97 * work(machine, rows, requests, 0).rate


@pytest.mark.parametrize("rows", [1, 8])
def test_parks_where_a_verified_token_costs_as_much_as_a_plain_one(rows: int):
    requests = jobs(3 * rows, equal(0.8), lengths=(200, 300))
    outcome = work(REFERENCE_BLAS, rows, requests, Budget(measured(REFERENCE_BLAS, rows), BLOCK))
    assert outcome.rate > 0.97 * work(REFERENCE_BLAS, rows, requests, 0).rate
    assert outcome.drafted < 0.03 * outcome.tokens


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_the_tail_of_a_batch(machine: Machine):
    """As many rows as requests, of very different lengths: plain batching first, deep drafts for the last rows."""
    requests = jobs(32, equal(0.8), lengths=(20, 600))
    budget = Budget(measured(machine, 32), BLOCK)
    assert work(machine, 32, requests, budget).rate > hindsight(machine, 32, requests, DEPTHS).rate


def test_a_draft_that_becomes_useful_is_noticed():
    def chance(number: int, place: float) -> float:
        return 0.02 if number < 8 else 0.9

    for machine in (M4_PRO, H200):
        assert ratio(machine, 1, chance, 16) > 1.0


@pytest.mark.parametrize("chance", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("rows", [8, 32])
def test_learns_what_rounds_take_beyond_the_model(rows: int, chance: float):
    machine = BUSY_HOST
    requests = jobs(4 * rows, equal(chance))
    outcome = work(machine, rows, requests, Budget(measured(H200, rows), BLOCK))
    assert outcome.rate > 0.95 * hindsight(machine, rows, requests, DEPTHS).rate


def test_finds_out_that_rounds_without_drafts_take_less_than_the_model_says():
    machine = replace(H200, base=0.65 * H200.base, draft=1.6)
    requests = jobs(12, equal(0.5))
    found = work(machine, 1, requests, Budget(measured(H200, 1), BLOCK)).rate
    plain, *fixed = (work(machine, 1, requests, depth).rate for depth in DEPTHS)
    assert 0.9 * plain > max(fixed)
    assert found > 0.92 * plain


@pytest.mark.parametrize("machine", [M5_MAX, H200, HOST_BOUND, PLANNING], ids=lambda machine: machine.name)
def test_rows_of_mixed_acceptance_side_by_side(machine: Machine):
    """They yield 1 to 8 tokens a round: at least as fast as any fixed depth, though that knows it beforehand."""
    assert ratio(machine, 8, mixed, 32) > 1.02


@pytest.mark.parametrize("machine", [M4_PRO, H200], ids=lambda machine: machine.name)
def test_sudden_changes_of_acceptance(machine: Machine):
    requests = jobs(8, switching(0.1, 0.9), lengths=(400, 400))
    budget = Budget(measured(machine, 4), BLOCK)
    assert work(machine, 4, requests, budget).rate > 0.97 * hindsight(machine, 4, requests, DEPTHS).rate


def test_rounds_without_prompts_have_numbers_of_the_ladder():
    """Unless rows are near their ends, or leave drafts out."""
    budget = Noting(measured(H200, 16), BLOCK)
    work(H200, 16, jobs(16, differing(0.2, 0.95), lengths=(300, 300)), budget)
    assert len([size for size in budget.sizes if size > 16 and size != rung(size)]) <= 2
    assert len(budget.sizes) < 24


def test_what_is_free_up_to_the_next_rung_is_used():
    here = choice(M5_MAX, [0.9] * 3 + [0.02] * 6)
    depths = here.best().depths
    assert (len(depths) + sum(depths)) % 8 == 0
    assert min(depths[:3]) > 0


def learned(machine: Machine, rows: int, chance: float) -> Budget:
    """A new start, after one that worked through such requests."""
    before, after = (Budget(measured(machine, rows), BLOCK) for _ in range(2))
    work(machine, rows, jobs(3 * rows, equal(chance), seed=5), before)
    after.begin(json.loads(json.dumps(before.to_dict())))
    return after


@pytest.mark.parametrize("machine", [M5_MAX, H200], ids=lambda machine: machine.name)
@pytest.mark.parametrize("rows", [1, 8])
def test_a_new_start_parks_or_drafts_at_once_as_the_last_one_did(machine: Machine, rows: int):
    candidates = [Candidate(str(row), 100, 500) for row in range(rows)]
    useless, good = (learned(machine, rows, chance) for chance in (0.0, 0.9))
    assert sum(any(useless.depths(candidates)) for _ in range(5)) <= 1  # a trial
    assert [any(good.depths(candidates)) for _ in range(5)] == [True] * 5


@pytest.mark.parametrize("rows", [1, 8])
def test_a_new_start_may_find_what_the_last_one_did_not(rows: int):
    requests = jobs(6 * rows, equal(0.9))
    found = work(H200, rows, requests, learned(H200, rows, 0.0)).rate
    assert found > 0.9 * hindsight(H200, rows, requests, DEPTHS).rate


@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("machine", [*MACHINES, REFERENCE_BLAS, PLANNING], ids=lambda machine: machine.name)
def test_trials_lose_less_than_one_percent(machine: Machine, rows: int):
    requests = jobs(4 if rows == 1 else rows, equal(0.0), lengths=(1000, 1000))
    found = work(machine, rows, requests, learned(machine, rows, 0.0)).rate
    assert 0.99 < found / work(machine, rows, requests, 0).rate <= 1


def test_takes_little_of_the_host():
    """Generously bounded, as other work may share the cores: a few hundred microseconds are usual."""
    budget = Budget(measured(H200, 64), BLOCK)
    rows = [Candidate(str(row), 100, 500) for row in range(64)]
    seconds: list[float] = []
    for number in range(30):
        begin = time.process_time()
        depths = budget.depths(rows)
        seconds.append(time.process_time() - begin)
        for row in rows:
            budget.observe(row.key, max(4, depths[0]), (int(row.key) + number) % 5)
    assert min(seconds) < 0.003


class Counting(Budget):
    """Counts its choices."""

    choices = 0

    def _choice(self, rows: Sequence[Candidate], prompt: int) -> DepthChoice:
        self.choices += 1
        return super()._choice(rows, prompt)


def test_rows_that_did_not_draft_for_long_are_seldom_chosen_for_again():
    budget = Counting(measured(H200, 8), BLOCK)
    work(H200, 8, jobs(8, equal(0.0), lengths=(600, 600)), budget)
    assert budget.rounds > 500
    assert budget.choices < budget.rounds / 3
    before = budget.choices
    budget.depths([Candidate("new", 100, 50)])
    assert budget.choices == before + 1


def test_many_rows_that_draft_are_chosen_for_every_other_round():
    few, many = (Counting(measured(H200, rows), BLOCK) for rows in (4, 32))
    for budget, rows in ((few, 4), (many, 32)):
        work(H200, rows, jobs(rows, equal(0.8), lengths=(600, 600)), budget)
    assert few.choices > 0.95 * few.rounds
    assert many.choices < 0.75 * many.rounds


def drafting(copying: bool = False) -> tuple[Counting, list[Candidate], list[int]]:
    """Rows whose depths were chosen just now, so that they go on without another choice if nothing changes."""
    budget, rows = Counting(measured(H200, 9), BLOCK, copying), [Candidate(str(row), 100, 500) for row in range(8)]
    depths = budget.depths(rows)
    assert any(depths)
    return budget, rows, depths


def test_what_goes_on_is_the_same_round():
    budget, rows, depths = drafting()
    before, forecast = budget.choices, budget.forecast
    assert budget.depths(rows) == depths
    assert (budget.choices, budget.forecast, budget.kinds) == (before, forecast, [0] * 8)
    budget.depths(rows)
    assert budget.choices == before + 1


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[1:],
        lambda rows: [*rows, Candidate("new", 100, 50)],
        lambda rows: [replace(rows[0], left=1), *rows[1:]],
        lambda rows: [replace(rows[0], match=8), *rows[1:]],
    ],
    ids=["a row has ended", "one has come", "one is near its end", "one may copy"],
)
def test_rows_that_change_are_chosen_for(change: Callable[[list[Candidate]], list[Candidate]]):
    budget, rows, _ = drafting(copying=True)
    before = budget.choices
    budget.depths(change(rows))
    assert budget.choices == before + 1


def test_a_round_that_may_take_less_by_now_is_chosen_for():
    budget, rows, _ = drafting()
    before = budget.choices
    assert sum(budget.depths(rows, cut=lambda depths: [min(depth, 1) for depth in depths])) <= 8
    assert budget.choices == before + 1
