"""Rounds that fail: the engine goes on with the same tokens, a request with which they always fail ends by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import mlx.core as mx
import pytest

from draftmill.engine.engine import Engine
from draftmill.engine.request import Completion, EngineFailed, Request, Sampling
from draftmill.engine.schedule.blame import blame
from draftmill.engine.schedule.row import RELIEF, Row
from draftmill.kernels.attention.manner import Manner
from draftmill.kernels.operations import Operations
from draftmill.kernels.packing import Packing
from draftmill.kernels.pages.pool import LayerPool
from tests.engine.choose import test_grammar
from tests.engine.drafting.test_speculation import engine_with_draft, small_model
from tests.engine.small import reference, requests, run, small_engine

Fault = Callable[[mx.array], mx.array]


def refused(mixed: mx.array) -> mx.array:
    """Fails as a graph is built."""
    raise MemoryError("no room\nat all")


def escaped(mixed: mx.array) -> mx.array:
    """Fails as a graph is evaluated, and whenever what came of it is.

    No operation fails here, but its input, which a compiled function has let out. An operation that fails before it is
    queued may count as running for ever in MLX 0.32, and much later an evaluation may wait for it for ever.
    """
    let_out: list[mx.array] = []
    mx.compile(lambda x: let_out.append(x) or x + 1)(mx.zeros(1))
    return mixed + let_out[0]


def singular(mixed: mx.array) -> mx.array:
    """Fails while it is computed, when the host has gone on; what came of it then holds anything.

    A process must see few of these: with each of them MLX takes a task for running that never began, and with eleven
    such tasks it waits for ever.
    """
    return mixed + mx.linalg.inv(mx.zeros((2, 2)), stream=mx.cpu)[0, 0]


@dataclass(frozen=True)
class Failing(Operations):
    """Attention that fails for some packed tokens."""

    fails: Callable[[Packing], bool] = lambda packing: False
    fault: Fault = refused

    def attention(self, queries: mx.array, pool: LayerPool, packing: Packing, manner: Manner) -> mx.array:
        mixed = super().attention(queries, pool, packing, manner)
        return self.fault(mixed) if self.fails(packing) else mixed


def at(*calls: int) -> Callable[[Packing], bool]:
    """Fails at these calls, whatever they are of."""
    numbers = count()
    return lambda packing: next(numbers) in calls


def failing(engine: Engine, fails: Callable[[Packing], bool], fault: Fault = refused) -> Engine:
    engine.target.operations = Failing(fails=fails, fault=fault)
    return engine


@pytest.mark.parametrize(
    ("fault", "calls"),
    [(refused, (0,)), (refused, (40, 130, 260)), (escaped, (31,)), (singular, (130,))],
)
@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
def test_after_a_failed_round_rows_go_on_with_their_tokens(family: str, calls: tuple[int, ...], fault: Fault) -> None:
    model, asked = small_model(family), requests(6)
    done = run(failing(engine_with_draft(model, max_rows=4), at(*calls), fault), asked, every=2)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)
        assert done[request.id].finish_reason == "length"


def test_sampled_rows_and_shared_prefixes_go_on_as_well() -> None:
    model, prefix = small_model("qwen3.5"), tuple(range(70))
    asked = [
        replace(request, tokens=prefix + request.tokens)
        for request in requests(6, temperature=0.9, top_p=0.9, top_k=30)
    ]
    expected = run(small_engine(model), asked)
    done = run(failing(small_engine(model, max_rows=3), at(33), singular), asked)
    assert {id: it.tokens for id, it in done.items()} == {id: it.tokens for id, it in expected.items()}
    assert sum(it.cached_tokens for it in done.values()) > 0


def test_grammars_are_where_their_rows_are() -> None:
    asked = test_grammar.asking(4, temperature=1.0)
    free = [replace(request, id=f"free {request.id}", grammar=None) for request in asked[:2]]
    expected = test_grammar.tokens(run(test_grammar.engine(), asked + free))
    for fault, calls in ((refused, (45, 140, 290)), (singular, (140,))):
        engine = failing(test_grammar.engine(draft=True), at(*calls), fault)
        assert test_grammar.tokens(run(engine, asked + free)) == expected


def test_a_round_that_fails_twice_in_a_row_ends_nobody() -> None:
    model, asked = small_model("llama"), requests(6)
    engine, failed = small_engine(model), [0]

    def fails(packing: Packing) -> bool:
        failed[0] += failed[0] < 2 and len(packing.spans) == 6
        return failed[0] < 2 and len(packing.spans) == 6

    done = run(failing(engine, fails), asked)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


@pytest.mark.parametrize(("length", "limit"), [(90, 80), (60, 75)], ids=["its prompt", "its completion"])
@pytest.mark.parametrize(("family", "fault"), [("llama", refused), ("qwen3.5", escaped)])
def test_a_request_that_alone_makes_rounds_fail_ends_and_harms_nobody(
    family: str, fault: Fault, length: int, limit: int
) -> None:
    model, asked = small_model(family), requests(6)
    bad = Request("bad", tuple(i % 90 for i in range(length)), Sampling(max_tokens=40))
    engine = small_engine(model, max_rows=4)
    done = run(
        failing(engine, lambda packing: any(span.length > limit for span in packing.spans), fault), [bad, *asked]
    )
    ended = done.pop("bad")
    kind = {"refused": "MemoryError", "escaped": "RuntimeError"}[fault.__name__]
    assert (ended.finish_reason, ended.error) == ("failed", f"the engine failed with {kind}")
    assert list(ended.tokens) == reference(model, bad)[: len(ended.tokens)]
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)
    assert not engine.busy
    engine.scheduler.prefixes.clear()
    assert engine.scheduler.pages.free == engine.scheduler.pages.most


@pytest.mark.parametrize(("length", "most"), [(60, 3), (40, 25)], ids=["their prompts", "their completions"])
@pytest.mark.parametrize("fault", [refused, escaped])
def test_of_suspects_only_those_end_that_fail_alone(fault: Fault, length: int, most: int) -> None:
    """Those that take longest are tried first, and here they are good."""
    model, asked = small_model("llama"), requests(8, max_tokens=12, longest=20)
    bad = {
        request.id: replace(request, tokens=tuple(range(length)), sampling=Sampling(max_tokens=most))
        for request in asked[2::3]
    }
    engine = engine_with_draft(model, max_rows=8)
    fails = failing(engine, lambda packing: any(span.length > 50 for span in packing.spans), fault)
    done = run(fails, [bad.get(request.id, request) for request in asked])
    assert {id for id, each in done.items() if each.finish_reason == "failed"} == set(bad)
    for request in asked:
        assert request.id in bad or list(done[request.id].tokens) == reference(model, request)


def test_a_request_that_has_nobody_beside_it_ends_too() -> None:
    engine = failing(small_engine(small_model("llama")), lambda packing: packing.spans[0].length > 20)
    bad = Request("bad", tuple(range(30)), Sampling(max_tokens=4))
    assert run(engine, [bad])["bad"].finish_reason == "failed"
    assert run(engine, [replace(bad, id="good", tokens=(1, 2, 3))])["good"].finish_reason == "length"


def test_an_engine_that_always_fails_says_so_at_once() -> None:
    engine, asked = small_engine(small_model("llama")), requests(4)
    for request in asked:
        engine.add(request)
    engine.step()
    engine.step()
    failing(engine, lambda packing: True)
    with pytest.raises(EngineFailed, match=r"failed \(MemoryError: no room\), then one of fixed tokens did"):
        engine.step()
    assert engine.unfinished == 4


def test_a_sick_engine_does_not_blame_one_request_after_the_other() -> None:
    """Prompts are read, and every later round fails."""
    model = small_model("llama")
    engine = failing(small_engine(model, max_rows=4), lambda packing: any(span.length > 20 for span in packing.spans))
    for n in range(20):
        engine.add(Request(f"r-{n}", tuple(range(n, n + 18)), Sampling(max_tokens=9)))
    ended: list[Completion] = []

    def work() -> None:
        while engine.busy:
            ended.extend(engine.step())

    with pytest.raises(EngineFailed, match=r"with each of the last 9 requests: MemoryError: no room"):
        work()
    assert {each.finish_reason for each in ended} == {"failed"}
    assert len(ended) + engine.unfinished == 20
    assert len(ended) <= 8


def test_requests_that_fail_among_others_end_alone() -> None:
    model = small_model("llama")
    engine = failing(small_engine(model, max_rows=4), lambda packing: any(span.length > 20 for span in packing.spans))
    asked = [Request(f"r-{n}", tuple(range(n, n + 10)), Sampling(max_tokens=5 if n % 3 else 20)) for n in range(20)]
    done = run(engine, asked)
    ends = [done[request.id].finish_reason for request in asked]
    assert ends == ["length" if n % 3 else "failed" for n in range(20)]


def test_requests_that_fail_again_when_they_are_retried_are_the_same_ones() -> None:
    """At the end of a dataset a worker has nothing but these."""
    engine = failing(
        small_engine(small_model("llama")), lambda packing: any(span.length > 20 for span in packing.spans)
    )
    for _ in range(3):
        asked = [Request(f"r-{n}", tuple(range(n, n + 10)), Sampling(max_tokens=20)) for n in range(8)]
        assert {each.finish_reason for each in run(engine, asked).values()} == {"failed"}


def test_a_row_that_gave_way_in_a_round_that_failed_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.schedule.scheduler.HEADROOM", 2)
    model, asked = small_model("llama"), requests(6, max_tokens=60, longest=30)
    engine, failed = small_engine(model, max_rows=6, slots=170), [False]

    def fails(packing: Packing) -> bool:
        fails = engine.scheduler.preempted > 0 and not failed[0]
        failed[0] |= fails
        return fails

    done = run(failing(engine, fails), asked)
    assert failed[0]
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


def test_rounds_that_fail_only_with_many_rows_are_said_to() -> None:
    engine = failing(small_engine(small_model("llama")), lambda packing: len(packing.spans) > 3)
    with pytest.raises(EngineFailed, match=r"rounds of \d requests fail, of one they do not: lower --max-rows"):
        run(engine, requests(6))


def test_no_round_holds_what_a_failed_one_has_made() -> None:
    model, asked = small_model("qwen3.5"), requests(6)
    engine = small_engine(model)
    run(engine, asked)
    before = mx.get_active_memory()
    failing(engine, at(33, 60), escaped)
    run(engine, asked)
    assert mx.get_active_memory() < before + engine.pool[0].keys.nbytes / 2


def test_blame_fades_as_rows_go_on() -> None:
    row = Row(Request("x", (1,)), limit=500)
    other = Row(Request("y", (2,)), limit=500)
    assert blame([row, other], "why") is None
    assert not row.suspect
    assert blame([row, other], "why") is None
    assert row.suspect
    row.generated.append(7)
    assert not row.suspect
    row.rounds += RELIEF
    assert blame([row], "why") is None
    assert blame([other], "why") is other
