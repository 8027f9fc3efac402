"""Costs are measured once for a pair and machine, and an engine that was measured generates as before."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from draftmill.engine.depth.budget import Budget
from draftmill.engine.depth.calibration import ON_GPU, Pace, calibrated, here, known_costs, measure
from draftmill.engine.depth.round_cost import Cost, Point
from draftmill.kernels.race import measurements
from tests.engine.drafting.test_speculation import BLOCK, engine_with_draft, small_model
from tests.engine.small import qwen3_moe_model, reference, requests, run


@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
def test_costs_are_measured_once_and_leave_no_trace(family: str, tmp_path: Path) -> None:
    model, asked = small_model(family), requests(6)
    engine = engine_with_draft(model)
    assert engine.drafter
    assert known_costs(tmp_path) == {}
    given = ("some pair", tmp_path, engine.target, engine.drafter.draft, 32, 8)
    cost = calibrated(*given)
    known = [calibrated(*given), known_costs(tmp_path)["some pair"]]
    assert [again.to_dict() for again in known] == [cost.to_dict()] * 2
    assert cost.round.at(1) > 0
    assert cost.residual < 1
    assert cost.workspace > 0
    engine.spend(Budget(cost, BLOCK))
    done = run(engine, asked)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


DAMAGES = (
    *(("round", {"seconds": [value, value]}) for value in (0.0, -1.0, math.nan, math.inf, 1e300, "1", None)),
    *(("round", {"seconds": seconds}) for seconds in ([], [1.0], [2.0, 1.0], 3)),
    *(("round", {"knots": knots}) for knots in ([], [4, 1], [1, 1], [0, 2], [1, math.nan], ["1", "4"])),
    *(("draft", {name: value}) for name in ("per_row", "per_pair", "residual") for value in (-1.0, math.nan)),
)


@pytest.mark.parametrize(("curve", "damage"), DAMAGES)
def test_a_damaged_cost_is_measured_again(curve: str, damage: dict[str, Any], tmp_path: Path) -> None:
    points = [Point(tokens, 1, 100, 1e-3) for tokens in (1, 4)]
    cost = Cost.fit(points, points).to_dict()
    measurements.write(tmp_path / "costs.json", here(), {"whole": cost, "torn": cost | {curve: cost[curve] | damage}})
    assert set(known_costs(tmp_path)) == {"whole"}


@pytest.mark.parametrize("entry", [3, None, [], {"pair": 3}, {"pair": {"round": []}}])
def test_entries_that_are_no_costs_are_none(entry: Any, tmp_path: Path) -> None:
    measurements.write(tmp_path / "costs.json", here(), entry)
    assert known_costs(tmp_path) == {}


def test_a_row_budget_gives_up_on_a_useless_draft() -> None:
    engine = engine_with_draft(small_model("llama"))
    points = [Point(tokens, 1, 100, 1e-3 * tokens) for tokens in (1, 2, 4, 8, 16)]
    engine.spend(Budget(Cost.fit(points, points), BLOCK))
    run(engine, requests(8, max_tokens=40))
    assert engine.stats.drafted < 0.2 * engine.stats.row_rounds


def test_rows_that_give_way_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.schedule.scheduler.HEADROOM", 2)
    model, asked = small_model("qwen3"), requests(6, max_tokens=60, longest=30)
    engine = engine_with_draft(model, max_rows=6, slots=170)
    points = [Point(tokens, 1, 100, 1e-3) for tokens in (1, 2, 64)]
    engine.spend(Budget(Cost.fit(points, points), BLOCK))
    done = run(engine, asked)
    assert engine.scheduler.preempted
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


class NotingExperts(nn.Module):
    """Experts that note how many tokens came to them at a time, and through how many different ones these went."""

    def __init__(self, experts: nn.Module):
        super().__init__()
        self.experts = experts
        self.noted: dict[int, int] = {}

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        experts: Any = chosen.flatten().tolist()
        self.noted[x.shape[0]] = len(set(experts))
        return self.experts(x, chosen)


def test_a_mixture_of_experts_is_timed_with_as_many_experts_as_it_reads() -> None:
    model = qwen3_moe_model(num_experts=16)
    engine = engine_with_draft(model)
    layer = model.layers[0]
    layer.mlp.switch_mlp = noting = NotingExperts(layer.mlp.switch_mlp)
    assert engine.drafter
    measure(engine.target, engine.drafter.draft, 64, 8, pace=ON_GPU)
    assert noting.noted[1] == 2  # a token's own
    assert noting.noted[8] > 6
    assert noting.noted[max(noting.noted)] > 12


class CompilingExperts(NotingExperts):
    """Experts for which a device compiles whenever so many tokens come for the first time."""

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        if x.shape[0] not in self.noted:
            time.sleep(0.3)
        return super().__call__(x, chosen)


def measured_sizes(experts: type[NotingExperts], pace: Pace = ON_GPU) -> list[int]:
    """The numbers of tokens that are timed with a mixture of such experts."""
    model = qwen3_moe_model()
    engine = engine_with_draft(model)
    for layer in (model.layers[0], model.layers[2]):
        layer.mlp.switch_mlp = noting = experts(layer.mlp.switch_mlp)
    assert engine.drafter
    cost = measure(engine.target, engine.drafter.draft, 64, 8, pace=pace)
    assert list(cost.round.knots) == sorted(noting.noted)
    return sorted(noting.noted)


def test_where_new_sizes_are_slow_few_are_timed_up_to_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {1, 2, 4, 6, 8, 9, 12} <= {*measured_sizes(NotingExperts)}
    monkeypatch.setattr("draftmill.engine.depth.calibration.SLOW_FIRST", 0.3)
    assert measured_sizes(CompilingExperts) == [1, 2, 16, 8 * BLOCK]


def test_first_runs_are_bounded_too() -> None:
    assert measured_sizes(CompilingExperts, Pace(8.0, 1.0))[-1] < 8 * BLOCK


def test_few_sizes_can_be_timed() -> None:
    """As on a CPU, where the first answer waits for them."""
    sizes = measured_sizes(NotingExperts, Pace(8.0, 8.0, 4))
    assert all(after >= 4 * before for before, after in itertools.pairwise(sizes[:-1]))
    assert sizes[-1] == 8 * BLOCK
