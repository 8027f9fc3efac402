"""MTP heads in the engine's rounds: output is the target's own, and drafts are those of a head that saw all entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import pytest

from draftmill.engine.drafting.drafter import DraftRow
from draftmill.engine.drafting.mtp.drafter import MTPDrafter
from draftmill.engine.drafting.mtp.head import MTP
from draftmill.engine.engine import Engine
from draftmill.engine.models.targets import adapt
from draftmill.engine.request import Completion, Request, Sampling
from draftmill.engine.schedule.row import Row
from tests.engine.choose import test_grammar as grammars
from tests.engine.drafting.mtp.heads import Formulas, random_head, stored
from tests.engine.drafting.test_speculation import DRAFTS, pairwise
from tests.engine.small import (
    VOCABULARY,
    NumberTokenizer,
    memory_for,
    quantised,
    qwen3_5_model,
    qwen3_5_moe_model,
    reference,
    requests,
    run,
)

BUILDERS: dict[str, Callable[[], Any]] = {
    "dense": qwen3_5_model,
    "moe": qwen3_5_moe_model,
    "quantised": lambda: quantised(qwen3_5_model()),
}


@cache
def small_model(builder: str) -> Any:
    return BUILDERS[builder]()


class Noting(MTPDrafter):
    """Notes what is drafted for a request behind a cursor. If some positions are `wrong`, gives what follows in `texts`
    instead, but not at those.
    """

    texts: dict[str, mx.array]
    wrong: Callable[[int], bool] | None

    def begin(self, texts: dict[str, list[int]], wrong: Callable[[int], bool] | None) -> Noting:
        self.drafted: dict[tuple[str, int], list[int]] = {}
        self.wrong = wrong
        self.texts = {
            id: mx.array([(t + 1) % VOCABULARY if wrong and wrong(i) else t for i, t in enumerate(text)] + [0] * 9)
            for id, text in texts.items()
        }
        return self

    def draft_blocks(self, rows: Sequence[DraftRow], anchors: mx.array, cursors: mx.array) -> mx.array:
        tokens = super().draft_blocks(rows, anchors, cursors)
        given: Any = tokens.tolist()
        for row in rows:
            cursor: Any = cursors[row.slot].item()
            self.drafted[row.request.id, cursor], given = given[: row.depth], given[row.depth :]
        if not self.wrong:
            return tokens
        parts = [self.texts[row.request.id][cursors[row.slot] + 1 + mx.arange(row.depth)] for row in rows]
        return mx.concatenate(parts)


def mtp_engine(
    model: Any,
    asked: Sequence[Request] = (),
    wrong: Callable[[int], bool] | None = None,
    rows: int = 8,
    slots: int = 2048,
    end: tuple[int, ...] = (),
    tokenizer: Any = None,
) -> Engine:
    target = adapt(model)
    head = MTP(random_head(target.model.args), target)
    memory = memory_for(target, head, slots, rows)
    engine = Engine(target, tokenizer or NumberTokenizer(end), 512, rows, memory, draft=head)
    engine.drafter = Noting(head, target, engine.pool.pages, rows).begin(
        {request.id: [*request.tokens, *reference(model, request)] for request in asked} if wrong else {}, wrong
    )
    return engine


def noted(engine: Engine) -> Noting:
    assert isinstance(engine.drafter, Noting)
    return engine.drafter


def mixed(rows: Sequence[Row], prompt: int) -> list[int]:
    """Depths that differ from row to row and from round to round."""
    return [(row.rounds + len(row.request.tokens)) % 4 for row in rows]


@pytest.mark.parametrize(("builder", "rows", "draft"), pairwise(BUILDERS))
def test_greedy_equals_mlx_lm(builder: str, rows: int, draft: str) -> None:
    model, asked = small_model(builder), requests(8, max_tokens=16)
    end = reference(model, asked[0])[5]
    engine = mtp_engine(model, asked, DRAFTS[draft], rows, end=(end,))
    engine.scheduler.depths = mixed
    done = run(engine, asked, every=2)
    for request in asked:
        expected = reference(model, request)
        assert list(done[request.id].tokens) == (expected[: expected.index(end)] if end in expected else expected)


def test_a_right_head_fills_every_block() -> None:
    model, asked = small_model("dense"), requests(4, max_tokens=13)
    done = run(mtp_engine(model, asked, DRAFTS["oracle"]), asked)
    assert {(own.rounds, own.accepted, own.drafted) for own in done.values()} == {(3, 9, 9)}


@pytest.mark.parametrize("builder", ["dense", "moe"])
@pytest.mark.parametrize("wrong", DRAFTS.values(), ids=DRAFTS)
def test_drafts_are_those_of_a_head_that_saw_the_whole_text(builder: str, wrong: Callable[[int], bool] | None) -> None:
    model, asked = small_model(builder), requests(3, max_tokens=12, longest=20)
    engine = mtp_engine(model, asked, wrong, rows=2)
    engine.scheduler.depths = mixed
    done = run(engine, asked)
    assert sum(checked(engine, request, done[request.id]) for request in asked) > 6


def checked(engine: Engine, request: Request, completion: Completion) -> int:
    """Compares a row's drafts with those of the formulas; returns how often it drafted."""
    text, drafted = [*request.tokens, *completion.tokens], noted(engine).drafted
    hidden = engine.target.body(mx.array([text]))[0]
    args = engine.target.model.args
    formulas, rounds = Formulas(stored(random_head(args)), args, engine.target.embed.weight), 0
    for cursor in range(1, len(text)):
        ahead = formulas.entry(hidden[cursor - 1], text[cursor])
        for draft in (drafts := drafted.get((request.id, cursor), [])):
            assert draft == mx.argmax(engine.target.head(ahead[None]), axis=-1).item()
            ahead = formulas.entry(ahead, draft)
        formulas.cut(cursor)
        rounds += bool(drafts)
    return rounds


def test_rows_with_a_grammar_draft_from_what_they_emit() -> None:
    model = grammars.small_model("qwen3.5")
    asked = [*grammars.asking(2), *(replace(own, id=f"free {own.id}", grammar=None) for own in grammars.asking(2))]
    asked = [replace(own, sampling=replace(own.sampling, max_tokens=60 if own.grammar else 20)) for own in asked]
    plain = run(grammars.engine("qwen3.5"), asked)
    engine = mtp_engine(model, rows=3, tokenizer=grammars.tokenizer())
    engine.scheduler.depths = mixed
    done = run(engine, asked, every=2)
    assert {id: own.tokens for id, own in done.items()} == {id: own.tokens for id, own in plain.items()}
    assert all(checked(engine, request, done[request.id]) > 4 for request in asked)


def test_sampled_output_does_not_depend_on_the_head() -> None:
    model, asked = small_model("dense"), requests(6, temperature=0.8, top_p=0.9)
    head = run(mtp_engine(model), asked)
    none = run(mtp_engine_without(model), asked)
    assert {id: own.tokens for id, own in head.items()} == {id: own.tokens for id, own in none.items()}


def mtp_engine_without(model: Any) -> Engine:
    target = adapt(model)
    return Engine(target, NumberTokenizer(), 512, 8, memory_for(target, None, 2048, 8))


def templated(template: int) -> list[Request]:
    shared = tuple((7 * i) % 90 + 1 for i in range(template))
    return [
        Request(f"r{n}", (*shared, *range(n + 1, n + 9)), Sampling(max_tokens=most, seed=n))
        for n, most in enumerate((80, 20, 40, 33, 60))
    ]


def late_drafts(begin: int, template: int = 0, most: int | None = None, slots: int = 2048) -> Noting:
    """Serves the requests three at a time; a row drafts from its round `begin` on, in two rounds of three."""
    engine, asked = mtp_engine(small_model("dense"), rows=3, slots=slots), templated(template)
    if most is not None:
        engine._context.most = most
    engine.scheduler.depths = lambda rows, prompt: [
        3 if row.rounds >= begin and (row.rounds + begin) % 3 else 0 for row in rows
    ]
    done = run(engine, asked)
    for request in asked:
        assert list(done[request.id].tokens) == reference(small_model("dense"), request)
    return noted(engine)


@pytest.mark.parametrize("most", [None, 0, 50])
@pytest.mark.parametrize("template", [0, 70])
def test_it_does_not_matter_when_a_row_begins_to_draft(template: int, most: int | None) -> None:
    always, late = late_drafts(0, template), late_drafts(12, template, most)
    both = always.drafted.keys() & late.drafted.keys()
    assert len(both) > 25
    assert {place: late.drafted[place] for place in both} == {place: always.drafted[place] for place in both}


def test_a_preempted_row_drafts_as_before() -> None:
    always, crowded = late_drafts(0), late_drafts(4, slots=220)
    both = always.drafted.keys() & crowded.drafted.keys()
    assert len(both) > 25
    assert all(crowded.drafted[place] == always.drafted[place] for place in both)
