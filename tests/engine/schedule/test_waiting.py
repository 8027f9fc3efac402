"""The order in which requests start: batches end sooner, nobody starves, prompts that begin alike stay together."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from draftmill.engine.request import Request, Sampling
from draftmill.engine.schedule.row import Row
from draftmill.engine.schedule.scheduler import Scheduler
from draftmill.engine.schedule.waiting import OVERTAKING, Waiting
from tests.engine.small import llama_model, reference, requests, run, small_engine

ROWS = 8


def row(name: str, limit: int, tokens: tuple[int, ...] = (1,)) -> Row:
    return Row(Request(name, tokens, Sampling(max_tokens=limit)), limit)


def drain(waiting: Waiting) -> list[str]:
    names: list[str] = []
    while (first := waiting.next) is not None:
        waiting.remove(first)
        names.append(first.request.id)
    return names


def rounds(limits: Sequence[int], known: int) -> int:
    """Rounds until all rows of so many tokens are done, if `known` of them wait at a time."""
    scheduler = Scheduler(10**6, ROWS)
    left = [row(f"r{n}", limit, (n,)) for n, limit in enumerate(limits)]
    count = 0
    while left or scheduler.rows or len(scheduler.waiting):
        while left and len(scheduler.waiting) < known:
            scheduler.add(left.pop(0))
        for segment in scheduler.plan().segments:
            running = segment.row
            running.in_flight.popleft()
            running.cursor += segment.depth is not None
            running.generated.append(0)
            if len(running.generated) == running.limit:
                scheduler.remove(running)
        count += 1
    return count


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_of_mixed_lengths_ends_sooner(seed: int) -> None:
    draw = random.Random(seed)
    limits = [int(2 ** draw.uniform(3, 8)) for _ in range(96)]
    least = max(*limits, -(-sum(limits) // ROWS))
    assert rounds(limits, known=len(limits)) <= 1.05 * least
    assert rounds(limits, known=len(limits)) <= rounds(limits, known=1)
    limits.sort()  # the long ones at the end: what hurts most
    assert rounds(limits, known=len(limits)) < 0.9 * rounds(limits, known=1)


def test_the_engine_ends_sooner_with_the_same_tokens() -> None:
    model = llama_model()
    asked = requests(12)
    long = Request("long", (1, 2), Sampling(max_tokens=100))
    at_once, one_by_one = small_engine(model, max_rows=3), small_engine(model, max_rows=3)
    done = run(at_once, [*asked, long])
    for request in [*asked, long]:
        while one_by_one.unfinished == 3:
            one_by_one.step()
        one_by_one.add(request)
    run(one_by_one, [])
    assert at_once.stats.rounds < 0.8 * one_by_one.stats.rounds
    for request in [*asked, long]:
        assert list(done[request.id].tokens) == reference(model, request)


def test_nobody_is_overtaken_for_ever() -> None:
    waiting = Waiting(OVERTAKING * ROWS, lambda row: row.limit)
    waiting.add(row("short", 1))
    for n in range(1000):
        waiting.add(row(f"{n}", 100))
        first = waiting.next
        assert first
        waiting.remove(first)
        if first.request.id == "short":
            break
    else:
        raise AssertionError("starved")
    assert n == OVERTAKING * ROWS


def test_prompts_that_begin_alike_follow_each_other() -> None:
    waiting = Waiting(1000, lambda row: row.limit)
    templates = [(5, 6, 7), (5, 8, 1), (2, 9, 9)]
    for n in range(12):
        waiting.add(row(f"{n % 3}", 20, (*templates[n % 3], 50 - n)))
    assert "".join(drain(waiting)) == "2" * 4 + "0" * 4 + "1" * 4


def test_rows_that_gave_way_come_first() -> None:
    waiting = Waiting(1000, lambda row: row.limit)
    waiting.add(row("new", 90))
    waiting.put_back(row("younger", 10))
    waiting.put_back(row("older", 5))
    cancelled = row("cancelled", 99)
    waiting.add(cancelled)
    waiting.remove(cancelled)
    assert drain(waiting) == ["older", "younger", "new"]


def test_short_prompts_are_read_first_where_all_requests_have_a_row() -> None:
    scheduler = Scheduler(10**6, ROWS)
    scheduler.prefill_tokens = 4
    lengths = {"long": (900, 9), "middle": (20, 6), "short": (10, 3)}
    for name, (limit, length) in lengths.items():
        scheduler.add(row(name, limit, tuple(range(length))))
    begun = [segment.row.request.id for _ in range(4) for segment in scheduler.plan().segments if not segment.first]
    assert begun == ["short", "middle", "long"]


def test_long_requests_start_first_where_requests_wait_for_rows() -> None:
    scheduler = Scheduler(10**6, 2)
    for name, limit, length in (("a", 5, 3), ("b", 90, 9), ("c", 50, 6)):
        scheduler.add(row(name, limit, tuple(range(length))))
    assert [segment.row.request.id for segment in scheduler.plan().segments] == ["b", "c"]
