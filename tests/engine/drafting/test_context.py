"""A row that begins to draft late drafts what it would have drafted all along; till then its draft costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest

from draftmill.engine.drafting import context
from draftmill.engine.drafting.drafter import Drafter, DraftRow
from draftmill.engine.request import Request, Sampling
from draftmill.engine.schedule.row import Row
from draftmill.kernels.pages.places import Places
from tests.engine.small import llama_model, run

from .test_speculation import engine_with_draft, random_draft


class Noting(Drafter):
    """Notes what is drafted for a request after a cursor, and how many tokens' context is written."""

    def begin(self) -> Noting:
        self.drafted: dict[tuple[str, int], list[int]] = {}
        self.extended = 0
        return self

    def draft_blocks(self, rows: Sequence[DraftRow], anchors: mx.array, cursors: mx.array) -> mx.array:
        tokens = super().draft_blocks(rows, anchors, cursors)
        given: Any = tokens.tolist()
        for row in rows:
            cursor: Any = cursors[row.slot].item()
            self.drafted[row.request.id, cursor] = given[: row.depth]
            given = given[row.depth :]
        return tokens

    def extend(self, taps: mx.array, places: Places) -> list[mx.array]:
        self.extended += places.positions.size
        return super().extend(taps, places)


def asked(template: int) -> list[Request]:
    shared = tuple((7 * i) % 90 + 1 for i in range(template))
    return [
        Request(f"r{n}", (*shared, *range(n + 1, n + 9)), Sampling(max_tokens=most, seed=n))
        for n, most in enumerate((160, 20, 40, 33, 60))
    ]


def drafts(begin: int, template: int = 0, most: int | None = None, slots: int = 2048) -> Noting:
    """Serves the requests three at a time; a row drafts from its round `begin` on, in two rounds of three."""
    engine = engine_with_draft(llama_model(), random_draft(), max_rows=3, slots=slots)
    assert engine.drafter
    engine.drafter = noting = Noting(engine.drafter.draft, engine.target, engine.pool.pages).begin()
    if most is not None:
        engine._context.most = most

    def depths(rows: Sequence[Row], prompt: int) -> list[int]:
        return [3 if row.rounds >= begin and (row.rounds + begin) % 3 else 0 for row in rows]

    engine.scheduler.depths = depths
    run(engine, asked(template))
    return noting


@pytest.mark.parametrize("most", [None, 0, 50])
@pytest.mark.parametrize("template", [0, 70])
def test_it_does_not_matter_when_a_row_begins_to_draft(template: int, most: int | None) -> None:
    always, late = drafts(0, template), drafts(12, template, most)
    both = always.drafted.keys() & late.drafted.keys()
    assert {id for id, _ in both} == {f"r{n}" for n in range(5)}
    assert len(both) > 40
    assert {place: late.drafted[place] for place in both} == {place: always.drafted[place] for place in both}


def test_a_preempted_row_drafts_as_before() -> None:
    always, crowded = drafts(0), drafts(4, slots=220)
    both = always.drafted.keys() & crowded.drafted.keys()
    assert len(both) > 40
    assert all(crowded.drafted[place] == always.drafted[place] for place in both)


def test_rows_that_never_draft_write_little_context(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < drafts(10**6, most=10**6).extended < 313  # the longest rows' only, and not all of it
    monkeypatch.setattr(context, "ROUNDS", 10**6)
    assert drafts(10**6, most=10**6).extended == 0


def test_what_waits_is_bounded() -> None:
    assert drafts(10**6, most=50).extended > 100
