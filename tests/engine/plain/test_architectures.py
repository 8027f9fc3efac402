"""Every architecture of the table gives mlx-lm's own tokens, whatever runs beside a request."""

from __future__ import annotations

import pytest

from tests.engine.plain.architectures import ARCHITECTURES, plain_engine, tiny
from tests.engine.small import reference, requests


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ragged_rows_that_come_and_go_have_mlx_lm_s_tokens(architecture: str) -> None:
    model, asked = tiny(architecture), requests(6, max_tokens=14)
    engine, done, steps = plain_engine(model, max_rows=3), {}, 0
    assert engine.remark.startswith(f"plain: no adapter for {architecture}")
    for request in asked[:4]:
        engine.add(request)
    while engine.busy:
        done |= {completion.id: completion for completion in engine.step()}
        steps += 1
        if steps == 6:
            engine.cancel(asked[1].id)
            for request in asked[4:]:
                engine.add(request)
    for request in asked:
        tokens, expected = list(done[request.id].tokens), reference(model, request)
        if request is asked[1]:
            assert tokens == expected[: len(tokens)]
        else:
            assert (done[request.id].finish_reason, tokens) == ("length", expected)


def test_there_are_as_many_as_promised() -> None:
    assert len(ARCHITECTURES) >= 30


def test_what_mlx_lm_cannot_bring_together_runs_one_row_at_a_time() -> None:
    engine = plain_engine(tiny("llama4"))
    reason = "one row at a time (mlx-lm cannot merge a ChunkedKVCache)"
    assert engine.remark == f"plain: no adapter for llama4, {reason}"
    assert engine.max_rows == 1


def test_prompts_that_harm_each_other_are_read_one_at_a_time() -> None:
    """mlx-lm's Mamba takes the padding behind a prompt for a part of it."""
    engine = plain_engine(tiny("mamba"))
    assert engine.remark.startswith("plain: no adapter for mamba, prompts one at a time (logits are off by")
    assert engine.max_rows == 8
