"""DSpark drafts against their definition, in each of the published layouts, and what of them is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from draftmill.engine.choose.change import Change, Slot
from draftmill.engine.choose.sampling import choose
from draftmill.engine.drafting.checkpoint import load_draft
from draftmill.engine.drafting.dflash import Wanted, arrays
from draftmill.engine.drafting.drafter import Drafter
from draftmill.engine.drafting.dspark import DSparkConfig
from draftmill.engine.models.folder import ModelError
from draftmill.engine.models.pairs import resolve
from draftmill.engine.models.targets import adapt
from draftmill.engine.request import Sampling
from tests.engine.small import VOCABULARY, llama_model

from .dspark import (
    BLOCK,
    FEWER,
    FLAT,
    NESTED,
    PLAIN,
    SPECULATORS,
    Definition,
    loaded,
    random_weights,
    tokens_of_fewer,
    write,
)
from .test_dflash2 import Contexts


def nested(**changes: Any) -> dict[str, Any]:
    return {**NESTED, "dflash_config": {**NESTED["dflash_config"], **changes}}


def layered(**changes: Any) -> dict[str, Any]:
    layer = {**SPECULATORS["transformer_layer_config"], **changes}
    return {**SPECULATORS, "transformer_layer_config": layer}


LIQUID = {
    **{name: value for name, value in NESTED.items() if name != "dflash_config"},
    "architectures": ["Lfm2DSparkDraftModel"],
    "markov_rank": 16,
    "rope_is_neox_style": False,
    "dflash_config": {"mask_token_id": 5, "target_layer_ids": [0, 2], "num_target_layers": 3},
}

NOISE = dict(
    model_type="qwen3_5_text",
    attn_output_gate=True,
    full_attention_interval=4,
    layer_types=["linear_attention"] * 3,
    linear_num_key_heads=16,
    partial_rotary_factor=0.25,
    rope_theta=None,
    rope_parameters={
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
    },
    use_sliding_window=True,
)
"""What of a target stands in copies of its configuration."""

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
WINDOWS = {"layer_types": ["sliding_attention"] * 2, "sliding_window": 9}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int, dict[str, Any]]] = {
    # What config.json says, what it means beside `PLAIN`, the slot of the first draft, and the weights.
    "DeepSpec": (FLAT, {}, 0, {"own": "embedding, head"}),
    "DeepSpec, without embedding and head": (FLAT, {}, 0, {}),
    "DeepSpec, a copy of its target's": ({**FLAT, **NOISE}, {}, 0, {}),
    "DeepSpec, called DFlash": (
        {**FLAT, **NOISE, "architectures": ["DFlashDraftModel"], "dflash_config": {"mask_token_id": 5}},
        {},
        0,
        {},
    ),
    "DeepSpec, capped": ({**FLAT, "final_logit_softcapping": 2.0}, {"cap": 2.0}, 0, {"own": "head"}),
    "SpecForge": (NESTED, {}, 0, {}),
    "SpecForge, gated": (nested(markov_head_type="gated"), {}, 0, {"kind": "gated"}),
    "SpecForge, recurrent": (nested(markov_head_type="rnn"), {}, 0, {"kind": "rnn"}),
    "SpecForge, recurrent, behind the anchor": (
        nested(markov_head_type="rnn", sample_from_anchor=False),
        {},
        1,
        {"kind": "rnn"},
    ),
    "Liquid AI": (LIQUID, {"interleaved": True}, 0, {}),
    "causal": (
        nested(causal=True, sample_from_anchor=False, dspark_bonus_anchor=True),
        {"is_causal": True},
        1,
        {"own": "embedding"},
    ),
    "speculators": (SPECULATORS, {**WINDOWS, "is_causal": True}, 0, {"own": "embedding, head", "outputs": FEWER}),
    "speculators, bidirectional, all tokens": (
        {**SPECULATORS, "sliding_window_non_causal": True, "draft_vocab_size": VOCABULARY},
        WINDOWS,
        0,
        {},
    ),
    "speculators, full attention": (
        {**layered(layer_types=None, sliding_window=None, use_sliding_window=False), "draft_vocab_size": None},
        {},
        0,
        {},
    ),
    "speculators, behind the anchor": (
        {**SPECULATORS, "sample_from_anchor": False, "draft_vocab_size": None},
        {**WINDOWS, "is_causal": True},
        1,
        {"own": "head"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_drafts_by_its_definition(case: str, tmp_path: Path) -> None:
    config, changes, first, made = CASES[case]
    weights = random_weights(**made)
    draft = loaded(tmp_path / "draft", config, weights)
    meant = {**PLAIN, **changes, "markov_head_type": made.get("kind", "vanilla")}
    by_definition, contexts = Definition(weights, meant), Contexts(draft)
    assert (draft.first, draft.block) == (first, BLOCK - first + 1)
    deepest = BLOCK - first
    taps: tuple[list[mx.array], list[mx.array]] = [], []
    for counts in ((3, 7), (1, 3), (2, 12)):
        for own, more in zip(taps, contexts.grow(*counts), strict=True):
            own.append(more)
        asked = contexts.rows(3, deepest)
        wanted, drafted = contexts.drafter.score(*asked), contexts.drafter.draft_blocks(*asked)
        positions = [c + 1 + j for c, depth in zip(contexts.cursors, (3, deepest), strict=True) for j in range(depth)]
        assert np.array(wanted.positions).tolist() == positions
        found = iter(zip(np.array(wanted.hidden), np.array(drafted).tolist(), strict=True))
        for anchor, depth, own in zip((9, 11), (3, deepest), taps, strict=True):
            block = mx.array([anchor] + [5] * (BLOCK - 1))
            table = weights.get("embed_tokens.weight")
            embedded = contexts.target.embed(block) if table is None else table[block]
            hidden = by_definition.hidden(np.array(embedded), np.array(mx.concatenate(own)))[first : first + depth]
            states, tokens = zip(*(next(found) for _ in range(depth)), strict=True)
            assert np.abs(np.array(states) - hidden).max() < 1e-5 * np.abs(hidden).max()
            head = weights.get("lm_head.weight")
            states = mx.array(hidden, mx.float32)
            logits = np.array(contexts.target.head(states) if head is None else states @ head.T)
            if cap := meant.get("cap"):
                logits = cap * np.tanh(logits / cap)
            assert list(tokens) == by_definition.chain(hidden, logits, anchor)


def test_yarn_is_the_draft_s_own_where_its_configuration_is(tmp_path: Path) -> None:
    assert DSparkConfig.from_dict({**NESTED, "rope_parameters": YARN}).rope_scaling == YARN
    assert DSparkConfig.from_dict({**FLAT, "rope_scaling": YARN}).rope_scaling is None


@pytest.mark.parametrize("kind", ["vanilla", "gated", "rnn"])
def test_a_chain_does_not_depend_on_how_deep_it_or_its_neighbours_are(kind: str, tmp_path: Path) -> None:
    contexts = Contexts(loaded(tmp_path / "draft", nested(markov_head_type=kind), random_weights(kind)))
    contexts.grow(4, 9)
    whole = np.array(contexts.drafter.draft_blocks(*contexts.rows(6, 6))).tolist()
    assert whole[:6] != whole[6:]
    for first, second in ((1, 1), (1, 6), (4, 2)):
        drafted = np.array(contexts.drafter.draft_blocks(*contexts.rows(first, second))).tolist()
        assert drafted == [*whole[:first], *whole[6 : 6 + second]]


def blocks(samplings: list[Sampling], outputs: int, slots: list[Slot] | None = None) -> Wanted:
    """Three slots for each row; all have the same anchor and cursor, states and logits."""
    mx.random.seed(21)
    hidden, logits = (mx.tile(2 * mx.random.normal((3, size)), (len(samplings), 1)) for size in (64, outputs))
    return Wanted(
        hidden,
        logits,
        mx.tile(31 + mx.arange(3, dtype=mx.int32), len(samplings)),
        [sampling for sampling in samplings for _ in range(3)],
        [slot for slot in slots or () for _ in range(3)],
        [3] * len(samplings),
        mx.full((len(samplings),), 11, mx.int32),
    )


@pytest.mark.parametrize("outputs", [VOCABULARY, FEWER])
def test_sampled_chains_take_the_target_s_noise(outputs: int, tmp_path: Path) -> None:
    """Where draft and target have the same logits, they choose the same tokens."""
    config = {**SPECULATORS, "draft_vocab_size": outputs}
    weights = random_weights(own="head", outputs=outputs)
    draft = loaded(tmp_path / "draft", config, weights)
    tokens = tokens_of_fewer() if outputs == FEWER else np.arange(VOCABULARY)
    samplings = [Sampling(temperature=1.2, top_p=0.9, top_k=20, seed=seed) for seed in range(40)] + [Sampling()]
    wanted = blocks(samplings, outputs)
    drafts = np.array(draft.choose(wanted)).reshape(-1, 3)
    w1, w2 = (np.array(weights[f"markov_head.markov_w{i}.weight"]) for i in (1, 2))
    assert len({tuple(row) for row in drafts.tolist()}) > 10
    for sampling, row in zip(samplings, drafts.tolist(), strict=True):
        for j, (before, drafted) in enumerate(zip([11, *row], row, strict=False)):
            logits = np.full(VOCABULARY, -np.inf)
            logits[tokens] = np.array(wanted.logits[j]) + w2 @ w1[before]
            position = mx.array([31 + j], mx.int32)
            assert choose(mx.array(logits[None], mx.float32), [sampling], position).item() == drafted


def test_rows_draft_what_they_allow(tmp_path: Path) -> None:
    """Also where none of the tokens that the draft knows is allowed."""
    draft = loaded(tmp_path / "draft", SPECULATORS, random_weights(own="head", outputs=FEWER))
    own = tokens_of_fewer()
    other = next(token for token in range(VOCABULARY) if token not in own)

    def only(token: int) -> Slot:
        bias = np.full(VOCABULARY, -np.inf, np.float32)
        bias[token] = 0
        return Slot(Change(bias=mx.array(bias)))

    samplings = [Sampling(), Sampling(temperature=0.7, seed=3), Sampling()]
    wanted = blocks(samplings, FEWER, [only(int(own[7])), only(other), Slot()])
    drafts = np.array(draft.choose(wanted)).reshape(3, 3)
    assert drafts[0].tolist() == [own[7]] * 3
    assert drafts[1].tolist() == [other] * 3
    assert drafts[2].tolist() == np.array(draft.choose(blocks([Sampling()], FEWER))).tolist()


def test_a_quantised_checkpoint_is_quantised_where_its_weights_are(tmp_path: Path) -> None:
    weights = random_weights(own="embedding, head")
    for name in ("fc", "layers.0.self_attn.q_proj", "layers.1.self_attn.k_proj", "lm_head"):
        parts = mx.quantize(weights[f"{name}.weight"], 32, 8)
        weights |= {f"{name}.{part}": array for part, array in zip(("weight", "scales", "biases"), parts, strict=True)}
    config = {**LIQUID, "quantization": {"group_size": 32, "bits": 8}}
    whole = dict(weights)
    for name in [name.removesuffix(".scales") for name in weights if name.endswith(".scales")]:
        parts = (whole.pop(f"{name}.{part}") for part in ("weight", "scales", "biases"))
        whole[f"{name}.weight"] = mx.dequantize(*parts, group_size=32, bits=8)
    quantised, plain = loaded(tmp_path / "a", config, weights), loaded(tmp_path / "b", LIQUID, whole)
    assert sum(name.endswith(".scales") for name, _ in arrays(quantised)) == 4
    states = []
    for draft in (quantised, plain):
        contexts = Contexts(draft)
        contexts.grow(4, 9)
        states.append(np.array(contexts.drafter.score(*contexts.rows(6, 6)).hidden))
    assert np.allclose(*states, atol=1e-4)


def test_the_published_configurations() -> None:
    five = dict(num_hidden_layers=5, num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=40960)
    flat = DSparkConfig.from_dict(
        {
            **five,
            **dict(architectures=["Qwen3DSparkModel"], model_type="qwen3", hidden_size=2560, head_dim=128),
            **dict(intermediate_size=9728, vocab_size=151936, draft_vocab_size=151936, block_size=7, markov_rank=256),
            **dict(target_layer_ids=[1, 9, 17, 25, 33], num_target_layers=36, mask_token_id=151669),
        }
    )
    assert (flat.draft_vocab_size, flat.first_slot, flat.is_causal) == (0, 0, False)
    liquid = DSparkConfig.from_dict(
        {
            **five,
            **dict(architectures=["Lfm2DSparkDraftModel"], model_type="qwen3", hidden_size=2048, head_dim=64),
            **dict(intermediate_size=6144, vocab_size=128000, block_size=9, markov_rank=256, rope_theta=1e7),
            **dict(rope_is_neox_style=False, rms_norm_eps=1e-5),
            "dflash_config": dict(mask_token_id=125017, target_layer_ids=[2, 9, 17, 21, 27], num_target_layers=30),
        }
    )
    assert (liquid.first_slot, liquid.rope_theta, liquid.rope_is_neox_style) == (0, 1e7, False)
    assert liquid.target_layer_ids == (2, 9, 17, 21, 27)
    red_hat = DSparkConfig.from_dict(
        {
            **SPECULATORS,
            **dict(block_size=8, mask_token_id=248077, draft_vocab_size=32000, markov_rank=256),
            "aux_hidden_state_layer_ids": [2, 10, 20, 30, 37],
            "transformer_layer_config": {
                **dict(model_type="qwen3", hidden_size=2048, num_hidden_layers=5, num_attention_heads=16),
                **dict(num_key_value_heads=2, head_dim=256, intermediate_size=6144, vocab_size=248320),
                **dict(layer_types=["sliding_attention"] * 5, sliding_window=2048, use_sliding_window=True),
            },
        }
    )
    assert red_hat.target_layer_ids == (1, 9, 19, 29, 36)
    assert (red_hat.is_causal, red_hat.sliding_window, red_hat.draft_vocab_size) == (None, 2048, 32000)
    assert resolve("LiquidAI/LFM2.5-2.6B-4bit").draft == "LiquidAI/LFM2.5-2.6B-DSpark"


def test_the_first_slot_follows_from_the_number_of_tokens_where_nothing_says_it() -> None:
    def slot(tokens: int | None) -> int:
        inner = {**SPECULATORS["speculators_config"], "proposal_methods": [{"speculative_tokens": tokens}]}
        config = {**SPECULATORS, "speculators_config": inner, "sample_from_anchor": None}
        return DSparkConfig.from_dict(config).first_slot

    assert [slot(BLOCK), slot(BLOCK - 1), slot(None)] == [0, 1, 1]
    with pytest.raises(ModelError, match="which slot drafts first is not known"):
        slot(BLOCK - 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**FLAT, "architectures": ["Gemma4DSparkModel"], "model_type": "gemma4_text"}, "type gemma4_text"),
        ({**FLAT, "model_type": "qwen3_5"}, "type qwen3_5 is"),
        ({**FLAT, "enable_qwen35_gated_q_proj": True}, "enable_qwen35_gated_q_proj"),
        ({**FLAT, "log_snr_conditioning": True}, "log_snr_conditioning"),
        ({**FLAT, "hidden_act": "gelu"}, "hidden_act"),
        ({**FLAT, "attention_bias": True}, "attention_bias"),
        ({**FLAT, "markov_rank": 0}, "markov_rank is not positive"),
        ({**FLAT, "block_size": None}, "no block_size"),
        ({**FLAT, "mask_token_id": None}, "no mask_token_id"),
        (nested(dspark_backbone_conv_enabled=True), "dspark_backbone_conv_enabled"),
        (nested(projector_type="other"), "projector_type 'other'"),
        (nested(left_shift=True), "has left_shift"),
        (nested(use_swa=True, swa_window_size=9), "has swa_window_size"),
        (nested(attention_sink_bias=True), "attention_sink_bias"),
        (nested(markov_head_type="fir"), "markov_head_type 'fir'"),
        (nested(dspark_bonus_anchor=True), "contradict"),
        (nested(sample_from_anchor=False, dspark_bonus_anchor=False), "contradict"),
        ({**NESTED, "use_sliding_window": True, "layer_types": None}, "contradict"),
        ({**NESTED, "rope_parameters": {**YARN, "rope_type": "dynamic"}}, "rope type 'dynamic'"),
        ({**NESTED, "rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor in rope_parameters"),
        ({**SPECULATORS, "speculators_model_type": "eagle3"}, "speculators_model_type: this layout"),
        ({**SPECULATORS, "enable_correction_head": True}, "enable_correction_head"),
        ({**SPECULATORS, "topk_context": 64}, "topk_context"),
        ({**SPECULATORS, "some_new_key": 3}, "some_new_key"),
        ({**SPECULATORS, "target_hidden_size": 128}, "target_hidden_size 128"),
        ({**SPECULATORS, "transformer_layer_config": None}, "'transformer_layer_config'"),
        (layered(hidden_act="gelu"), "hidden_act"),
        (layered(use_sliding_window=False), "contradict"),
        (layered(sliding_window=None), "no sliding_window"),
        (layered(hidden_size=None), "hidden_size"),
        (layered(attention_sink_bias=True), "attention_sink_bias"),
    ],
)
def test_a_configuration_that_means_something_else_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    folder = write(tmp_path / "draft", config, random_weights())
    with pytest.raises(ModelError, match=message) as error:
        load_draft(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "made", "edit", "message"),
    [
        (FLAT, {}, {"markov_head.markov_w2.weight": None}, "markov_head.markov_w2.weight is missing"),
        (FLAT, {"kind": "gated"}, {}, "markov_head.gate_proj.bias is unknown"),
        (nested(markov_head_type="rnn"), {}, {}, "markov_head.joint_proj.weight is missing"),
        (FLAT, {}, {"layers.0.self_attn.attention_sink_bias": mx.zeros(4)}, "attention_sink_bias is unknown"),
        (FLAT, {}, {"log_snr_embed.weight": mx.zeros(4)}, "log_snr_embed.weight is unknown"),
        (FLAT, {"outputs": FEWER}, {}, "d2t is there"),
        (LIQUID, {}, {"layers.0.self_attn.q_proj.weight": mx.zeros((120, 64))}, r"q_proj.weight is \(120, 64\)"),
        (SPECULATORS, {"outputs": FEWER}, {}, "lm_head.weight is missing"),
        (SPECULATORS, {"outputs": FEWER, "own": "head"}, {"d2t": None}, "d2t is missing"),
        (SPECULATORS, {"outputs": FEWER, "own": "head"}, {"d2t": mx.zeros(FEWER - 1, mx.int64)}, "d2t does not name"),
        (
            SPECULATORS,
            {"outputs": FEWER, "own": "head"},
            {"d2t": -mx.arange(FEWER, dtype=mx.int64)},
            "d2t does not name",
        ),
        (SPECULATORS, {"outputs": FEWER, "own": "head"}, {"d2t": mx.full((FEWER,), 99, mx.int64)}, "d2t does not name"),
    ],
)
def test_weights_that_do_not_belong_are_refused(
    tmp_path: Path, config: dict[str, Any], made: dict[str, Any], edit: dict[str, Any], message: str
) -> None:
    weights = {name: array for name, array in {**random_weights(**made), **edit}.items() if array is not None}
    with pytest.raises(ModelError, match=message):
        load_draft(write(tmp_path / "draft", config, weights))


def test_a_draft_of_another_target_is_refused(tmp_path: Path) -> None:
    target = adapt(llama_model())
    draft = loaded(tmp_path / "a", {**FLAT, "num_target_layers": 4}, random_weights())
    with pytest.raises(ModelError, match="made for 4 target layers"):
        Drafter(draft, target, 3)
    draft = loaded(
        tmp_path / "b",
        {**SPECULATORS, "draft_vocab_size": None, "aux_hidden_state_layer_ids": [1, 4]},
        random_weights(),
    )
    with pytest.raises(ModelError, match=r"taps \(0, 3\), target has 3 layers"):
        Drafter(draft, target, 3)


@pytest.mark.compiles
def test_its_bits_may_be_fewer(tmp_path: Path) -> None:
    weights = random_weights(own="embedding, head")
    weights["markov_head.markov_w1.weight"] = mx.random.normal((VOCABULARY, 64))
    weights["markov_head.markov_w2.weight"] = mx.random.normal((VOCABULARY, 64))
    folder = write(tmp_path / "draft", {**FLAT, "markov_rank": 64}, weights)
    draft: Any = load_draft(folder, quantize_bits=8)
    contexts = Contexts(draft)
    contexts.grow(4, 9)
    assert len(np.array(contexts.drafter.draft_blocks(*contexts.rows(2, 6)))) == 8
