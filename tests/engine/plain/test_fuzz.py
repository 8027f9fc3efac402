"""Random load on the plain engine: every row gets mlx-lm's tokens, whatever goes on beside it."""

from __future__ import annotations

from random import Random
from statistics import median_low as median

import pytest

from draftmill.engine.plain import engine
from draftmill.engine.plain.engine import SPARE, PlainEngine
from draftmill.engine.plain.ways import find_ways
from tests.engine.drafting.test_speculation import BLOCK
from tests.engine.expected import Expected
from tests.engine.fuzz import READABLE, SHOWN, Machine, Tally, small_model, tokenizer
from tests.engine.load import drawn

SEEDS = 8

HEADROOM = 4
"""Tokens beyond its prompt for which a row finds memory: so few that rows are sent back soon."""

KINDS = (
    "preemptions",
    "cached tokens",
    "cancelled",
    "sampled",
    "constrained",
    "closed thoughts",
    "stopped",
    "changed",
    "with log-probabilities",
)
"""What a tally must have seen."""


class PlainMachine(Machine):
    """Serves the load of one seed plainly, with memory for its largest row, and for a few that begin."""

    def _engine(self, expected: dict[str, Expected]) -> PlainEngine:  # pyright: ignore[reportIncompatibleMethodOverride]
        load, model = self.load, small_model(self.load.family)
        footprint, draw = find_ways(model).footprint, Random(load.seed)
        largest = max(footprint.bytes(len(it.tokens) + it.sampling.max_tokens) for it in load.requests)
        beginning = footprint.bytes(median(len(it.tokens) for it in load.requests) + HEADROOM)
        memory = max(largest, draw.randint(2, 4) * beginning) * SPARE // (SPARE - 1) + SPARE
        made = PlainEngine(model, tokenizer(), load.context, load.max_rows, memory)
        made.prefill_tokens = load.chunk
        return made


def test_rows_get_the_tokens_of_mlx_lm_whatever_goes_on_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "HEADROOM", HEADROOM)
    tally = Tally()
    for seed in range(SEEDS):
        if wrong := PlainMachine(drawn(seed, READABLE, BLOCK), tally.seen).run():
            tally.faults.append("\n".join([f"seed {seed}", *wrong[:SHOWN]]))
    assert tally.holds, tally.report
    for kind in KINDS:
        assert tally.seen[kind] > 0, tally.report
