"""The numbers of tokens that rounds may have."""

from __future__ import annotations

from draftmill.engine.depth.ladder import rung, rungs


def test_every_number_up_to_8_then_wider_and_wider_steps():
    assert [rung(tokens) for tokens in (1, 7, 8, 9, 16, 17, 64, 65, 81, 128, 129, 1000)] == [
        *(1, 7, 8, 16, 16, 24, 64, 80, 96, 128, 160, 1024)
    ]
    steps = [high - low for low, high in zip(rungs(1, 2048), rungs(2, 2048), strict=False)]
    assert steps == sorted(steps)


def test_rungs_reach_what_is_asked_for():
    assert rungs(9, 33) == (16, 24, 32, 40)
    assert rungs(3, 3) == (3,)
    assert len(rungs(1, 512)) < 32
