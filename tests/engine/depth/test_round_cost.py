"""The cost model of a machine."""

from __future__ import annotations

import json

import pytest

from draftmill.engine.depth.round_cost import Cost, Curve, Point, shapes_to_time
from draftmill.kernels.pages.sizes import pages_for

from .simulation import BLOCK, H200, M4_PRO, M5_MAX, MACHINES, Machine


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_predicts_what_was_not_measured(machine: Machine):
    cost = machine.measure(32, noise=0.02)
    assert cost.residual < 0.03
    for rows, depth in [(1, 0), (1, 5), (3, 3), (7, 7), (10, 2), (20, 0), (20, 12), (32, 15)]:
        tokens, context = rows * (depth + 1), rows * 700
        seconds = cost.rounds(tokens)[tokens] + rows * cost.round.per_row + context * cost.round.per_context
        seconds += (depth + 1) * context * cost.round.per_pair
        assert seconds == pytest.approx(machine.round(tokens, rows, context), rel=0.12)


def test_tells_rows_and_context_from_tokens():
    def seconds(tokens: int, rows: int, context: int) -> float:
        return 0.004 + 0.0001 * tokens + 0.0005 * rows + 1e-7 * context + 2e-8 * context * tokens / rows

    shapes = [
        (shape.tokens, shape.rows, shape.rows * shape.context) for shape in shapes_to_time(16, BLOCK) if not shape.draft
    ]
    curve = Curve.fit(Point(*shape, seconds(*shape)) for shape in shapes)
    assert curve.per_row == pytest.approx(0.0005, rel=0.02)
    assert curve.per_context == pytest.approx(1e-7, rel=0.02)
    assert curve.per_pair == pytest.approx(2e-8, rel=0.02)
    assert curve.residual < 0.001


def test_never_falls_and_goes_on_beyond_its_last_knot():
    curve = M5_MAX.measure(8, noise=0.1).round
    seconds = [curve.at(tokens) for tokens in range(600)]
    assert seconds == sorted(seconds)
    assert min(curve.per_row, curve.per_context, curve.per_pair) >= 0
    assert curve.at(512) == pytest.approx(M5_MAX.round(512, 0, 0), rel=0.25)


def test_a_round_takes_some_time_whatever_noise_says():
    """As a busy machine measured them: two contexts seem to explain it all."""
    points = [Point(1, 1, 256, 0.0006), Point(4, 1, 256, 0.0009), Point(4, 4, 1024, 0.0022), Point(16, 1, 256, 0.004)]
    points += [Point(1, 1, 2048, 0.0044), Point(16, 1, 2048, 0.035), Point(16, 16, 4096, 0.0087)]
    curve = Curve.fit(points)
    assert curve.at(1) >= 0.0003
    assert min(curve.per_row, curve.per_context, curve.per_pair) >= 0


def test_outliers_do_not_matter():
    points = [Point(tokens, 1, 100, 0.01) for tokens in (1, 2, 4) for _ in range(4)]
    curve = Curve.fit([*points, *(Point(tokens, 1, 100, 0.5) for tokens in (1, 2, 4))])
    seconds = curve.at(2) + curve.per_row + 100 * (curve.per_context + 2 * curve.per_pair)
    assert seconds == pytest.approx(0.01, rel=1e-3)


def test_survives_json():
    cost = H200.measure(4, noise=0.02)
    again = Cost.from_dict(json.loads(json.dumps(cost.to_dict())))
    assert again.to_dict() == cost.to_dict()
    assert again.rounds(100)[:101] == cost.rounds(100)[:101]
    assert again.drafts(4, BLOCK) == cost.drafts(4, BLOCK)
    step = Curve.fit([Point(1, 1, 256, 0.01), Point(8, 8, 2048, 0.03)])
    stepping = Cost(cost.round, cost.draft, step=step)
    assert Cost.from_dict(json.loads(json.dumps(stepping.to_dict()))).steps(8) == stepping.steps(8)


def test_there_are_long_contexts_however_few_pages():
    for pages in (34, 80, 640):
        shapes = shapes_to_time(64, BLOCK, pages)
        assert max(shape.rows * pages_for(shape.context + BLOCK) for shape in shapes) <= pages
        assert {shape.draft for shape in shapes if shape.context > 1000} == {False, True}


def test_no_points_is_an_error():
    with pytest.raises(ValueError, match="points"):
        Curve.fit([])


@pytest.mark.parametrize("max_rows", [1, 7, 32])
def test_plan_holds_only_what_can_run_and_takes_seconds(max_rows: int):
    shapes = shapes_to_time(max_rows, BLOCK)
    assert len(shapes) == len(set(shapes)) < 60
    for shape in shapes:
        assert 1 <= shape.rows <= max_rows
        assert shape.rows <= shape.tokens <= shape.rows * BLOCK
    cheap = [shape for shape in shapes if shape.tokens <= 128]
    assert 4 * sum(M4_PRO.round(shape.tokens, shape.rows, shape.context * shape.rows) for shape in cheap) < 10


def test_plan_without_a_draft_has_no_draft_passes():
    assert not any(shape.draft for shape in shapes_to_time(8, 0))
