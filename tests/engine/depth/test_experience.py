"""What a budget has learned survives the process: written when the engine is idle, read by the next start."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from draftmill.engine.depth.budget import Budget
from draftmill.engine.depth.calibration import here
from draftmill.engine.depth.depth_choice import Candidate
from draftmill.engine.depth.experience import PAIRS, Experience
from tests.engine.drafting.test_speculation import BLOCK as SMALL_BLOCK
from tests.engine.drafting.test_speculation import engine_with_draft, small_model
from tests.engine.small import reference, requests, run

from .simulation import BLOCK, M5_MAX, equal, jobs, work

COST = M5_MAX.measure(4, noise=0.02)
ROWS = [Candidate(str(row), 100, 500) for row in range(4)]
FRESH = Budget(COST, BLOCK).to_dict()


def start(cache: Path, name: str) -> tuple[Budget, Experience]:
    budget = Budget(COST, BLOCK)
    return budget, Experience(cache, name, budget)


def work_and_keep(cache: Path, name: str, chance: float = 0.0) -> Budget:
    budget, experience = start(cache, name)
    work(M5_MAX, 4, jobs(8, equal(chance)), budget)
    experience.keep(idle=True)
    return budget


def test_the_next_start_begins_with_what_the_last_one_has_learned(tmp_path: Path) -> None:
    budget = work_and_keep(tmp_path, "some pair")
    (same, _), (other, _) = (start(tmp_path, name) for name in ("some pair", "another pair"))
    assert same.to_dict()["acceptance"] == budget.to_dict()["acceptance"]
    assert other.to_dict() == FRESH
    assert [sum(any(new.depths(ROWS)) for _ in range(5)) for new in (same, other)] == [1, 5]  # a trial; drafts


def test_what_another_machine_or_version_has_learned_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "learned.json"
    file.write_text(json.dumps({"another machine": {"some pair": {"acceptance": [[9.0]], "times": []}}}))
    assert start(tmp_path, "some pair")[0].to_dict() == FRESH
    work_and_keep(tmp_path, "some pair")
    assert set(json.loads(file.read_bytes())) == {"another machine", here()}


@pytest.mark.parametrize(
    "learned",
    [
        *([], 3, {"acceptance": [["high"]], "times": []}, {"acceptance": [], "times": [[1]]}),
        *({"acceptance": [[odds]], "times": []} for odds in (math.nan, math.inf, 1e300, -800, 10**400)),
        *({"acceptance": [], "times": [[True, size, 0.0, 5.0]]} for size in (math.inf, math.nan, 0, -3, 1e9)),
        *({"acceptance": [], "times": [[False, 1.0, more, 5.0]]} for more in (math.inf, math.nan, 1e300)),
        *({"acceptance": [], "times": [[False, 1.0, 0.0, rounds]]} for rounds in (math.nan, 0, -1)),
    ],
)
def test_what_cannot_be_read_is_learned_anew(tmp_path: Path, learned: Any, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "learned.json").write_text(json.dumps({here(): {"some pair": learned}}))
    with caplog.at_level(logging.WARNING):
        budget, _ = start(tmp_path, "some pair")
    assert any(budget.depths(ROWS))
    assert [record.getMessage() for record in caplog.records if learned] == [
        f"{tmp_path / 'learned.json'}: what was learned with some pair is unreadable, so it is learned anew"
    ] * bool(learned)


def test_only_the_latest_pairs_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "learned.json"
    old = {f"pair {number}": FRESH for number in range(PAIRS)}
    file.write_text(json.dumps({here(): old}))
    work_and_keep(tmp_path, "pair 5")
    work_and_keep(tmp_path, "a new pair")
    assert list(json.loads(file.read_bytes())[here()]) == [name for name in old if name not in ("pair 0", "pair 5")] + [
        *("pair 5", "a new pair")
    ]


def test_nothing_is_written_while_there_is_work_or_nothing_new(tmp_path: Path) -> None:
    budget, experience = start(tmp_path, "some pair")
    experience.keep(idle=True)
    budget.depths(ROWS)
    experience.keep(idle=False)
    assert not (tmp_path / "learned.json").exists()
    experience.keep(idle=True)
    (tmp_path / "learned.json").unlink()
    experience.keep(idle=True)
    assert not (tmp_path / "learned.json").exists()


def test_an_engine_keeps_what_it_has_learned_as_soon_as_it_is_idle(tmp_path: Path) -> None:
    model, asked = small_model("llama"), requests(4, max_tokens=20)
    for begins_from in (0, 1):
        engine = engine_with_draft(model)
        engine.spend(budget := Budget(COST, SMALL_BLOCK))
        engine.after_round = Experience(tmp_path, "some pair", budget).keep
        assert len([value for value in budget.acceptance.to_list() if value is not None]) >= begins_from
        done = run(engine, asked)
        for request in asked:
            assert list(done[request.id].tokens) == reference(model, request)
        [written] = json.loads((tmp_path / "learned.json").read_bytes()).values()
        assert written["some pair"] == json.loads(json.dumps(budget.to_dict()))
