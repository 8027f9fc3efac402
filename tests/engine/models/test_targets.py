"""Families against mlx-lm: hidden states under simulated speculation, and whole generations through the engine."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import phi
from mlx_lm.models.gemma3_text import clip_residual

from draftmill.engine.models.targets import UnsupportedModel, adapt
from draftmill.engine.models.targets.transformer import Transformer
from draftmill.engine.state.state import State
from draftmill.kernels.packing import Packing, Span
from draftmill.kernels.pages.sizes import PAGE
from tests.engine.models.gemma4 import gemma4_large_model, gemma4_model, gemma4_moe_model
from tests.engine.small import (
    VOCABULARY,
    gemma3_model,
    gpt_oss_model,
    lfm2_model,
    lfm2_moe_model,
    llama_model,
    quantised,
    qwen3_5_model,
    qwen3_5_moe_model,
    qwen3_model,
    qwen3_moe_model,
    qwen3_next_model,
    reference,
    requests,
    run,
    small_engine,
)

PAGES = 4
"""Of a row."""


def pages_of(row: int) -> range:
    return range(PAGES * row, PAGES * (row + 1))


HYBRIDS = {
    "qwen3_5": qwen3_5_model,
    "qwen3_5-untied": lambda: qwen3_5_model(tie_word_embeddings=False, attention_bias=True),
    "qwen3_5-equal-heads": lambda: qwen3_5_model(linear_num_key_heads=4, num_hidden_layers=4),
    "qwen3_5-default-rope": lambda: qwen3_5_model(
        head_dim=128, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    ),
    "qwen3_5_moe": qwen3_5_moe_model,
    "lfm2": lfm2_model,
    "lfm2_moe": lfm2_moe_model,
    "qwen3_next": qwen3_next_model,
    "qwen3_5-quantised": lambda: quantised(qwen3_5_model()),
    "qwen3_5_moe-quantised": lambda: quantised(
        qwen3_5_moe_model(
            hidden_size=128, moe_intermediate_size=128, shared_expert_intermediate_size=128, linear_value_head_dim=32
        ),
        group_size=64,
    ),
}

# A quantised layer is longer than one group: with a single one, MLX's products on CUDA give zeros.
OTHERS = {
    "gemma4": gemma4_model,
    "qwen3_moe": qwen3_moe_model,
    "qwen3_moe-quantised": lambda: quantised(qwen3_moe_model()),
    "gemma4-quantised": lambda: quantised(gemma4_model(intermediate_size=64)),
    "gemma4-moe-quantised": lambda: quantised(gemma4_moe_model(intermediate_size=64)),
    "gemma4-traditional-rope": lambda: gemma4_model(rope_traditional=True, final_logit_softcapping=None),
    "gpt_oss-quantised": lambda: quantised(gpt_oss_model(intermediate_size=64)),
    "llama-quantised": lambda: quantised(llama_model()),
    "llama-quantised-biases": lambda: quantised(llama_model(attention_bias=True, mlp_bias=True)),
    "qwen3-quantised": lambda: quantised(qwen3_model(hidden_size=128, intermediate_size=128), group_size=64),
}


class Driver:
    """Runs rounds on a family as an engine would: spans of tokens, of which some are certain and some are guesses."""

    def __init__(self, target: Transformer, rows: int):
        self.target = target
        self.state: State = target.make_state(rows * PAGES)
        self.committed: dict[int, list[int]] = {}
        self.guessed: dict[int, list[int]] = {}

    def round(self, spans: dict[int, tuple[list[int], bool]], accepted: dict[int, int]) -> dict[int, mx.array]:
        """Hidden states of each row's span (tokens, whether they are final), after accepting guesses of the last."""
        tokens: list[int] = []
        positions: list[int] = []
        packed: list[Span] = []
        for row, (own, final) in spans.items():
            fresh = row not in self.committed
            past = self.committed.setdefault(row, [])
            past.extend(self.guessed.pop(row, [])[: accepted.get(row, 0)])
            end = len(past) + len(own)
            packed.append(Span(len(tokens), len(own), pages_of(row), end, row=row, fresh=fresh, final=final))
            tokens.extend(own)
            positions.extend(range(len(past), end))
            if final:
                past.extend(own)
            else:
                self.guessed[row] = own
        at = mx.array(positions, mx.int32)
        replay = mx.array([accepted.get(row, 0) for row in spans], mx.int32)
        packing = Packing.of(packed, at, replay)
        hidden, _ = self.target.forward(mx.array(tokens), packing, self.state)
        mx.eval(hidden)
        return {span.row: hidden[span.query : span.query + span.count] for span in packed}


def hidden_alone(model: Any, tokens: list[int]) -> mx.array:
    """mlx-lm's hidden states after the final norm."""
    return model.model(mx.array(tokens)[None])[0]


def guess(chance: random.Random, count: int) -> list[int]:
    return [chance.randrange(VOCABULARY) for _ in range(count)]


@pytest.mark.parametrize("family", [*HYBRIDS, "gemma4", "qwen3_moe"])
def test_speculation_leaves_hidden_states_as_they_are(family: str) -> None:
    """Wrong tokens are written ahead, n of them accepted; rows idle, begin anew and prefill beside others."""
    model = {**HYBRIDS, **OTHERS}[family]()
    chance = random.Random(family)
    driver = Driver(adapt(model), rows=5)
    idle = 0
    for _ in range(10):
        rows = [row for row in range(5) if chance.random() < 0.8] or [0]
        chance.shuffle(rows)
        spans: dict[int, tuple[list[int], bool]] = {}
        accepted: dict[int, int] = {}
        for row in rows:
            if len(driver.committed.get(row, [])) > 120 or chance.random() < 0.1:
                driver.committed.pop(row, None)
                driver.guessed.pop(row, None)
            final = row not in driver.committed or chance.random() < 0.3
            spans[row] = guess(chance, chance.randint(1, 40 if final else 8)), final
            accepted[row] = chance.randint(0, len(driver.guessed.get(row, [])))
        idle += len(driver.committed.keys() - spans.keys())
        hidden = driver.round(spans, accepted)
        for row, (own, final) in spans.items():
            expected = hidden_alone(model, driver.committed[row] + ([] if final else own))[-len(own) :]
            assert mx.allclose(hidden[row], expected, rtol=2e-3, atol=2e-3), (row, final)
    assert idle


@pytest.mark.parametrize(
    ("family", "rows"),
    [*((family, rows) for family in HYBRIDS for rows in (1, 3, 8)), *((family, 3) for family in OTHERS)],
)
def test_greedy_equals_mlx_lm(family: str, rows: int) -> None:
    model = {**HYBRIDS, **OTHERS}[family]()
    asked = requests(8)[: 8 if rows > 1 else 3]
    done = run(small_engine(model, max_rows=rows), asked, every=2 if rows == 3 else 0)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)


def test_taps_are_the_residual_stream_after_a_layer() -> None:
    model = qwen3_5_model()
    target = adapt(model)
    state = target.make_state(1)
    tokens = mx.arange(9)
    packing = Packing.of([Span(0, 9, (0,), 9, fresh=True)], mx.arange(9, dtype=mx.int32))
    hidden, taps = target.forward(tokens, packing, state, [1, 2, 0])
    assert mx.array_equal(target.norm(taps[1]), hidden)
    first = model.layers[0](model.model.embed_tokens(tokens)[None])[0]
    assert mx.allclose(taps[2], first, rtol=1e-4, atol=1e-5)


def test_a_draft_of_gemma_4_has_scaled_embeddings_and_logits_without_the_cap() -> None:
    """The target's cap is not the draft's, which has one of its own; taps are taken when a layer has scaled its sum."""
    model = gemma4_large_model()
    target, body, tokens = adapt(model), model.model, mx.arange(9)
    packing = Packing.of([Span(0, 9, (0,), 9, fresh=True)], mx.arange(9, dtype=mx.int32))
    hidden, taps = target.forward(tokens, packing, target.make_state(1), [0, 2])
    embedded = body.embed_tokens(tokens) * body.embed_scale
    assert mx.allclose(target.embed_drafts(tokens), embedded)
    assert mx.allclose(target.score_drafts(hidden), body.embed_tokens.as_linear(hidden), rtol=1e-4, atol=1e-5)
    assert mx.allclose(target.head(hidden), model(tokens[None])[0], rtol=1e-4, atol=1e-4)
    assert mx.allclose(taps[0], body.layers[0](embedded[None], "causal")[0][0], rtol=1e-4, atol=1e-4)
    assert mx.allclose(target.norm(taps[1]), hidden)


def test_layers_of_gemma_4_have_pools_of_their_own_shapes_and_later_ones_have_none() -> None:
    """As many as mlx-lm has caches, each as large as the keys and values in it."""
    model = gemma4_model()
    target, cache = adapt(model), model.make_cache()
    model(mx.arange(5)[None], cache=cache)
    held = [(each.keys.shape[1], each.keys.shape[3]) for each in cache]
    assert [(pool.heads, pool.dim) for pool in target.make_state(3).pool.layers] == held
    assert len(held) < len(target.layers)
    assert target.bytes_per_page == sum(2 * 4 * PAGE * heads * dim for heads, dim in held)


def test_a_sum_that_float16_cannot_hold_is_cut() -> None:
    model = gemma3_model()
    model.set_dtype(mx.float16)
    target, half = adapt(model), mx.full((1, 96), 40000.0, mx.float16)
    total, normed = target._add_norm(half, half, target.norm)
    assert mx.array_equal(total, clip_residual(half, half))
    assert mx.isfinite(normed).all()


def test_memory_is_that_of_the_rows_and_none_is_held_twice() -> None:
    """What a hybrid's rows hold is what `bytes_per_row` says, however many rounds have run."""
    target = adapt(qwen3_5_model(linear_key_head_dim=64, linear_value_head_dim=64, linear_num_value_heads=16))

    def begun() -> Driver:
        driver = Driver(target, rows=4)
        driver.round({row: (guess(chance, 20), True) for row in range(4)}, {})
        return driver

    def go_on(driver: Driver) -> None:
        for turn in range(6):
            driver.round({row: (guess(chance, 8), False) for row in range(turn % 2, 4)}, dict.fromkeys(range(4), 2))

    chance = random.Random(0)
    go_on(begun())  # a GPU's libraries take memory of their own at their first calls
    driver = begun()
    before = mx.get_active_memory()
    allowed = 4 * target.bytes_per_row(8)
    go_on(driver)
    assert target.bytes_per_row(0) * 4 < allowed
    assert mx.get_active_memory() - before < allowed - 3.9 * target.bytes_per_row(0)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"'phi' is not supported; supported: .*, llama, .*xverse"):
        adapt(phi.Model(phi.ModelArgs(num_hidden_layers=1, vocab_size=VOCABULARY, hidden_size=64)))
