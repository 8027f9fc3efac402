"""Engines whose command buffers are bounded: smaller rounds, the same tokens; and a GPU that gave up all the same."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from draftmill.engine.depth.budget import Budget
from draftmill.engine.depth.round_cost import Cost, Curve
from draftmill.engine.engine import Engine
from draftmill.engine.request import DeviceFailed
from draftmill.engine.schedule.blame import gave_up
from draftmill.engine.schedule.scheduler import Plan
from tests.engine.drafting.test_speculation import engine_with_draft, small_model
from tests.engine.plain.architectures import plain_engine, tiny
from tests.engine.small import reference, requests, run, small_engine
from tests.engine.test_recovery import at, failing

SAID = (
    "[METAL] Command buffer execution failed: Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"
)
"""As MLX words it, and macOS the part behind the colon."""

COST = Cost(Curve((1, 2), (0.001, 0.002), 0, 0, 1e-5, 0), Curve((1, 2), (0.001, 0.001), 0, 0, 0, 0))
"""A millisecond a token, and more the more lies behind it."""


def noting(engine: Engine) -> list[Plan]:
    """Every plan from now on."""
    plans: list[Plan] = []
    plan = engine.scheduler.plan

    def noted() -> Plan:
        plans.append(made := plan())
        return made

    engine.scheduler.plan = noted
    return plans


@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
@pytest.mark.parametrize("budgeted", [False, True])
def test_bounded_rounds_have_the_same_tokens(family: str, budgeted: bool) -> None:
    model, asked = small_model(family), requests(6)
    engine = engine_with_draft(model, max_rows=4)
    engine.cost = COST
    if budgeted and engine.drafter:
        engine.spend(Budget(COST, engine.drafter.block))
    engine.keep_within(0.020)
    plans = noting(engine)
    done = run(engine, asked, every=2)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)
    sizes = [sum(segment.count for segment in plan.segments) for plan in plans]
    assert 12 < max(sizes) <= 20
    assert any(segment.depth for plan in plans for segment in plan.segments)


def test_prompts_come_to_their_end_however_low_the_bound() -> None:
    model, asked = small_model("llama"), requests(5)
    engine = small_engine(model, max_rows=4)
    engine.cost = COST
    engine.keep_within(1e-9)
    done = run(engine, asked)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


def test_without_a_cost_there_is_no_bound() -> None:
    with pytest.raises(ValueError, match="not known"):
        small_engine(small_model("llama")).keep_within(0.5)


def test_the_plain_engine_times_its_chunks() -> None:
    model, asked = tiny("phi3"), requests(6, longest=200)
    engine = plain_engine(model, max_rows=4)
    engine.keep_within(1e-9)
    assert engine.prefill_tokens == 64
    done = run(engine, asked, every=2)
    assert engine.prefill_tokens == 8
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (SAID, "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"),
        (f"libc++abi: terminating due to uncaught exception of type std::runtime_error: {SAID}.\nmore", "Impacting"),
        ("[METAL] Command buffer execution failed: Internal Error (0000000e:Internal Error).", "Internal Error"),
        ("[METAL] Command buffer execution failed", "no reason given"),
        ("RuntimeError: out of memory", None),
    ],
)
def test_what_mlx_says_of_a_gpu_that_gave_up(said: str, why: str | None) -> None:
    found = gave_up(said)
    assert found == why if why is None else (found or "").startswith(why)
    assert not (found or "").endswith(".")


def given_up(mixed: mx.array) -> mx.array:
    raise RuntimeError(SAID)


def exhaust(engine: Engine) -> None:
    while engine.busy:
        engine.step()


def test_a_gpu_that_gave_up_is_no_request_s_fault() -> None:
    model: Any = small_model("llama")
    engine = failing(small_engine(model, max_rows=4), at(40), given_up)
    for request in requests(4):
        engine.add(request)
    with pytest.raises(DeviceFailed, match=r"the GPU gave up: .METAL. Command buffer execution failed: Impacting"):
        exhaust(engine)
