"""Rounds whose command buffers stay below a bound, on simulated machines and in the engines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from draftmill.engine.depth.command_buffers import (
    LAUNCHES,
    LEAST_CHUNK,
    SECONDS,
    Bound,
    Parts,
    TimedChunks,
    environment,
    shallower,
)
from draftmill.engine.schedule.scheduler import PREFILL_TOKENS

from .simulation import M4_PRO, M5_MAX, Machine

M1 = Machine("M1", 0.034, 5, 8, per_row=0.002, per_context=2e-6)
"""A quarter of an M4 Pro's bandwidth, and a sixth of its arithmetic."""

PER_PAIR = 1e-4
"""What a token takes for each one behind it, in parts of what it takes by itself: as much again at 10,000."""

LENGTH = 32_768
QWEN3_4B, QWEN3_5_4B = Parts(36, 36), Parts(32, 8)


def bound(machine: Machine, parts: Parts, most: int = PREFILL_TOKENS, seconds: float = SECONDS) -> Bound:
    """With the cost that a worker would measure, and attention beside it."""
    cost = machine.measure(32, noise=0.02)
    per_pair = machine.base / machine.knee * PER_PAIR
    cost.round = replace(cost.round, per_pair=per_pair)
    return Bound(cost, parts, seconds, most)


def prefill(bound: Bound, decoding: int = 0) -> list[tuple[int, float]]:
    """The chunks of a long prompt beside so many rows, and what the longest command buffer of each round takes."""
    chunks: list[tuple[int, float]] = []
    done = 0
    while done < LENGTH:
        room = bound.room([500] * decoding)
        count = room.take(done, LENGTH - done)
        chunks.append((count, bound.buffer(room.tokens, room.rows, room.context, room.pairs)))
        done += count
    return chunks


@pytest.mark.parametrize("parts", [QWEN3_4B, QWEN3_5_4B], ids=["Qwen3-4B", "Qwen3.5-4B"])
@pytest.mark.parametrize("machine", [M1, M4_PRO, M5_MAX], ids=lambda machine: machine.name)
@pytest.mark.parametrize("decoding", [0, 16])
@pytest.mark.parametrize("most", [PREFILL_TOKENS, 1 << 20])
def test_no_command_buffer_of_a_long_prefill_is_above_the_bound(
    machine: Machine, parts: Parts, decoding: int, most: int
) -> None:
    chunks = prefill(bound(machine, parts, most), decoding)
    assert max(seconds for _, seconds in chunks) <= SECONDS
    # A chunk fills it, or is the largest that there is.
    assert all(seconds >= 0.7 * SECONDS or count == most for count, seconds in chunks[:-1])
    assert all(count > LEAST_CHUNK for count, _ in chunks[:-1])


def test_half_the_bound_and_half_the_launches_are_kept_too() -> None:
    fewer = Parts(36, 36, int(environment(1)["MLX_MAX_OPS_PER_BUFFER"]))
    assert fewer.held < QWEN3_4B.held
    chunks = prefill(bound(M1, fewer, seconds=SECONDS / 2))
    assert max(seconds for _, seconds in chunks) <= SECONDS / 2


def test_parts_of_a_round() -> None:
    assert environment() == {"MLX_MAX_OPS_PER_BUFFER": "40", "MLX_MAX_MB_PER_BUFFER": "40"}
    assert environment(9)["MLX_MAX_OPS_PER_BUFFER"] == "8"
    assert Parts(36, 36).of_layers == Parts(36, 36).of_attention == 7 / 36
    assert Parts(32, 8).of_attention == 2 / 8  # of seven layers in a row, two attend
    assert Parts(4, 0).of_layers == 1
    assert Parts(4, 0).of_attention == 0
    assert LAUNCHES == 40


def test_a_slower_machine_gets_smaller_chunks() -> None:
    usual, hot = (Bound(bound(M1, QWEN3_4B).cost, QWEN3_4B, SECONDS, 512, lambda pace=pace: pace) for pace in (0.5, 2))
    assert usual.buffer(64, 1, 0, 0) == bound(M1, QWEN3_4B).buffer(64, 1, 0, 0)
    assert hot.room([]).take(0, 9999) < 0.6 * usual.room([]).take(0, 9999)


def test_drafts_take_what_prompts_have_left() -> None:
    full = bound(M1, QWEN3_4B)
    assert full.drafts(7) == 7  # nobody asked for room yet
    room = full.room([1000] * 32)
    allowed = full.drafts(32 * 15)
    assert 0 < allowed < 32 * 15
    room.draft(allowed)
    assert not room.left
    room = full.room([1000] * 32)
    room.take(0, 9999)
    assert full.drafts(32 * 15) < LEAST_CHUNK


def test_the_deepest_drafts_are_cut() -> None:
    assert shallower([15, 3, 0, 7], 25) == [15, 3, 0, 7]
    assert shallower([15, 3, 0, 7], 17) == [7, 3, 0, 7]
    assert shallower([15, 3, 0, 7], 2) == [0, 0, 0, 0]
    assert shallower([], 0) == []


def test_chunks_that_are_timed_find_their_size() -> None:
    parts, per_token = Parts(30, 30), 0.004
    chunks, bounds = TimedChunks(parts, SECONDS, 2048), []
    assert chunks.tokens == 64
    for _ in range(12):
        seconds = per_token * chunks.tokens
        bounds.append(seconds * parts.of_layers)
        chunks.took(chunks.tokens, seconds)
    assert max(bounds) <= SECONDS
    assert bounds[-1] >= 0.7 * SECONDS
    chunks.took(chunks.tokens, 600)
    assert chunks.tokens == LEAST_CHUNK
