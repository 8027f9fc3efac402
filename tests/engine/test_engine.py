"""The engine against mlx-lm's own greedy output, whatever rows are beside a row and whenever they come and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from draftmill.engine.request import Request, RequestError, Sampling
from tests.engine.models.gemma4 import gemma4_large_model, gemma4_model, gemma4_moe_model

from .plain.architectures import plain_engine
from .small import (
    VOCABULARY,
    gemma2_model,
    gemma3_model,
    gpt_oss_model,
    llama_model,
    quantised,
    qwen2_model,
    qwen3_model,
    reference,
    requests,
    run,
    small_engine,
    smollm3_model,
)

BUILDERS = {
    "llama": llama_model,
    "llama-sliding": lambda: llama_model(
        layer_types=["full_attention", "sliding_attention", "sliding_attention"], sliding_window=16
    ),
    "llama-scaled-rope": lambda: llama_model(
        rope_scaling={"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32}
    ),
    "qwen3": qwen3_model,
    "qwen3-untied": lambda: qwen3_model(tie_word_embeddings=False),
}

VARIANTS = {
    "llama-neighbours": lambda: llama_model(rope_traditional=True),
    "llama-neighbours-yarn": lambda: llama_model(
        rope_traditional=True,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 2.0},
    ),
    "llama-linear-rope": lambda: llama_model(rope_scaling={"type": "linear", "factor": 4.0}),
    "llama-long-rope": lambda: llama_model(
        max_position_embeddings=512,
        rope_scaling={
            "type": "longrope",
            "original_max_position_embeddings": 64,
            "short_factor": [1.0] * 16,
            "long_factor": [1.0 + 0.25 * i for i in range(16)],
        },
    ),
    "llama-part-rope": lambda: llama_model(rope_scaling={"type": "proportional", "partial_rotary_factor": 0.5}),
    "llama-biases-tied": lambda: llama_model(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama-own-head-size": lambda: llama_model(hidden_size=128, head_dim=None, num_key_value_heads=None),
    "gemma2": gemma2_model,
    "gemma3": gemma3_model,
    "gemma4": gemma4_model,
    "gemma4-large": gemma4_large_model,
    "gemma4-moe": gemma4_moe_model,
    "gpt-oss": gpt_oss_model,
    "qwen2": qwen2_model,
    "qwen2-quantised": lambda: quantised(qwen2_model(tie_word_embeddings=False)),
    "llama-mixed-bits": lambda: quantised(llama_model(), v_proj=8, up_proj=8),
    "smollm3": smollm3_model,
    "qwen3-yarn": lambda: qwen3_model(
        rope_theta=None,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16},
    ),
}
"""Families that differ little from another one, and keys of configurations that few models have."""


@cache
def small_model(family: str) -> Any:
    """Made once, so that mlx-lm's continuations are computed once."""
    return {**BUILDERS, **VARIANTS}[family]()


@pytest.mark.parametrize(
    ("family", "rows"),
    [
        *((family, rows) for family in BUILDERS for rows in (1, 3, 8)),
        *((family, rows) for family in ("llama", "qwen3") for rows in (2, 5)),
        *((family, 3) for family in VARIANTS),
    ],
)
def test_greedy_equals_mlx_lm(family: str, rows: int) -> None:
    model = small_model(family)
    asked = requests(8)
    done = run(small_engine(model, max_rows=rows), asked)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_rows_joining_at_any_round_change_nothing(every: int) -> None:
    model = small_model("llama")
    asked = [
        replace(request, sampling=replace(request.sampling, max_tokens=3 + 5 * i))
        for i, request in enumerate(requests(8))
    ]
    done = run(small_engine(model, max_rows=4), asked, every=every)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


def test_it_asks_for_requests_before_their_first_round() -> None:
    engine = small_engine(small_model("llama"), max_rows=2)
    said: list[tuple[list[str], int]] = []

    def may_start(ids: Sequence[str]) -> bool:
        said.append((list(ids), engine.stats.rounds))
        return True

    engine.may_start = may_start
    asked = requests(4)
    run(engine, asked)
    started = [id for ids, _ in said for id in ids]
    assert sorted(started) == sorted(request.id for request in asked)
    assert (len(said[0][0]), said[0][1]) == (2, 0)
    assert all(rounds > 0 for _, rounds in said[1:])


@pytest.mark.parametrize("plain", [False, True])
def test_what_may_not_start_yet_waits_while_others_run(plain: bool) -> None:
    model = small_model("llama")
    engine = plain_engine(model, max_rows=2) if plain else small_engine(model, max_rows=2)
    refused: Counter[str] = Counter()

    def may_start(ids: Sequence[str]) -> bool:
        refused.update(ids)
        return all(refused[id] > 3 for id in ids)

    engine.may_start = may_start
    asked = [replace(r, sampling=replace(r.sampling, max_tokens=3 + 5 * i)) for i, r in enumerate(requests(6))]
    done = run(engine, asked)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)
    assert min(refused.values()) > 3


def test_long_prompts_are_chunked_beside_decoding_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.schedule.scheduler.PREFILL_TOKENS", 7)
    model = small_model("qwen3")
    asked = requests(6)
    done = run(small_engine(model, max_rows=4), asked, every=2)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


def test_growing_and_preempted_rows_keep_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.schedule.scheduler.HEADROOM", 2)
    model = small_model("llama")
    asked = requests(6, max_tokens=60, longest=30)
    engine = small_engine(model, max_rows=6, slots=150)
    done = run(engine, asked)
    assert engine.scheduler.preempted > 0
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


def test_sampled_rows_do_not_depend_on_neighbours() -> None:
    model = small_model("qwen3")
    asked = requests(8, temperature=0.8, top_p=0.9, top_k=30)
    together = run(small_engine(model), asked)
    alone = [run(small_engine(model), [request])[request.id] for request in asked]
    assert [together[request.id].tokens for request in asked] == [completion.tokens for completion in alone]
    other_seed = replace(asked[0], sampling=replace(asked[0].sampling, seed=5))
    assert run(small_engine(model), [other_seed])["r0"].tokens != alone[0].tokens


def test_greedy_rows_stay_greedy_beside_sampled_ones() -> None:
    model = small_model("llama")
    greedy = requests(8)
    mixed = [
        replace(request, sampling=replace(request.sampling, temperature=1.0)) if i % 2 else request
        for i, request in enumerate(greedy)
    ]
    done = run(small_engine(model), mixed)
    for request in mixed[::2]:
        assert list(done[request.id].tokens) == reference(model, request)


def test_end_token_ends_a_row_and_is_not_part_of_it() -> None:
    model = small_model("llama")
    asked = requests(6)
    end = reference(model, asked[0])[5]
    done = run(small_engine(model, end=(end,)), asked)
    for request in asked:
        expected = reference(model, request)
        cut = expected[: expected.index(end)] if end in expected else expected
        assert list(done[request.id].tokens) == cut
        assert done[request.id].finish_reason == ("stop" if end in expected else "length")


def test_stop_string_cuts_the_text() -> None:
    model = small_model("llama")
    request = requests(1)[0]
    expected = reference(model, request)
    stop = f" {expected[6]} {expected[7]} "
    stopping = replace(request, sampling=replace(request.sampling, stop=("never", stop)))
    completion = run(small_engine(model), [stopping])["r0"]
    assert completion.finish_reason == "stop"
    text = "".join(f"{token} " for token in expected)
    assert completion.text == text[: text.index(stop)]
    assert len(completion.tokens) <= 8


def test_cancel_frees_a_row_running_or_waiting() -> None:
    engine = small_engine(small_model("llama"), max_rows=2)
    for request in requests(4):
        engine.add(request)
    engine.step()
    engine.step()
    engine.cancel("r0")
    engine.cancel("r3")
    engine.cancel("nobody")
    done = run(engine, [])
    assert {id for id, completion in done.items() if completion.finish_reason == "cancelled"} == {"r0", "r3"}
    assert engine.scheduler.pages.free == engine.scheduler.pages.most


def test_requests_that_can_never_fit_are_refused() -> None:
    engine = small_engine(small_model("llama"), slots=128)
    for tokens, message in [((), "empty"), ((1,) * 512, "context"), ((1,) * 90, "--memory")]:
        with pytest.raises(RequestError, match=message):
            engine.add(Request("x", tokens, Sampling(max_tokens=50)))
    assert not engine.busy


def test_max_tokens_is_cut_to_the_context() -> None:
    engine = small_engine(small_model("llama"))
    done = run(engine, [Request("x", (1,) * 500, Sampling(max_tokens=400))])
    assert len(done["x"].tokens) == 12
    assert done["x"].finish_reason == "length"


def test_vocabulary_is_used() -> None:
    model = small_model("llama")
    assert len({token for request in requests(4) for token in reference(model, request)}) > VOCABULARY // 8
