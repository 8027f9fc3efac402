"""The DFlash 2 draft against its definition and z-lab's own implementation, and what of a checkpoint is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from draftmill.engine.drafting.checkpoint import load_draft
from draftmill.engine.drafting.dflash import DFlashDraft, arrays
from draftmill.engine.drafting.dflash2 import DFlash2Config
from draftmill.engine.drafting.drafter import Drafter, DraftRow
from draftmill.engine.models.folder import ModelError
from draftmill.engine.models.pairs import resolve
from draftmill.engine.models.targets import adapt
from draftmill.engine.request import Request
from draftmill.kernels.pages.places import Places, tabled
from tests.engine.small import llama_model

from .dflash2 import CONFIG, NESTED, Definition, random_draft, write

REQUEST, PAGES = Request("r", (1,)), [2, 1]

SHAPES: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"is_causal": True},
    "sliding": {"layer_types": ["sliding_attention"] * 2, "sliding_window": 9},
    "sliding, longer than the text": {"layer_types": ["sliding_attention"] * 2, "sliding_window": 64},
    "mixed": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 9},
    "sliding and causal": {"layer_types": ["sliding_attention"] * 2, "sliding_window": 9, "is_causal": True},
    "scaled": {
        "dflash_config": {
            **NESTED,
            "final_logit_softcapping": 3.0,
            "output_multiplier": 0.5,
            "input_embedding_scale": 2.0,
        }
    },
    "one tap": {"dflash_config": {**NESTED, "conv_kernel_size": 1, "conv_group_size": 64}},
    "whole block": {"dflash_config": {**NESTED, "conv_kernel_size": 6, "conv_group_size": 1}},
}


class Contexts:
    """A drafter with context of two rows, in rounds; the second row is one that others are compared with."""

    def __init__(self, draft: DFlashDraft):
        self.target = adapt(llama_model())
        self.drafter = Drafter(draft, self.target, pages=3)
        self.cursors = [0, 0]
        mx.random.seed(8)

    def grow(self, *counts: int) -> list[mx.array]:
        """So many tokens more of each row; returns their taps."""
        taps = [mx.random.normal((count, 2 * 64)) for count in counts]
        table, firsts = tabled([[0], PAGES])
        starts = mx.array([first for first, count in zip(firsts, counts, strict=True) for _ in range(count)], mx.int32)
        positions = [cursor + i for cursor, count in zip(self.cursors, counts, strict=True) for i in range(count)]
        places = Places(table, starts, mx.array(positions, mx.int32))
        mx.eval(self.drafter.extend(mx.concatenate(taps), places))
        self.cursors = [cursor + count for cursor, count in zip(self.cursors, counts, strict=True)]
        return taps

    def rows(self, *depths: int) -> tuple[list[DraftRow], mx.array, mx.array]:
        """What to draft for, after anchors 9 and 11; the host's bound of the second row is beyond its cursor."""
        first = DraftRow(REQUEST, 0, [0], self.cursors[0], True, depths[0])
        second = DraftRow(REQUEST, 1, PAGES, self.cursors[1] + 2, False, depths[1])
        return [first, second], mx.array([9, 11], mx.int32), mx.array(self.cursors, mx.int32)


@pytest.mark.parametrize("shape", SHAPES)
def test_drafts_by_its_definition(shape: str) -> None:
    config = {**CONFIG, **SHAPES[shape]}
    draft = random_draft(**SHAPES[shape])
    by_definition, contexts = Definition(draft, config), Contexts(draft)
    target, nested = contexts.target, config["dflash_config"]
    taps: tuple[list[mx.array], list[mx.array]] = [], []
    for counts in ((3, 7), (9, 3), (1, 12)):
        for own, more in zip(taps, contexts.grow(*counts), strict=True):
            own.append(more)
        asked = contexts.rows(3, 5)
        hidden, drafted = contexts.drafter.score(*asked).hidden, contexts.drafter.draft_blocks(*asked)
        found = iter(zip(np.array(hidden), np.array(drafted).tolist(), strict=True))
        for anchor, depth, own in zip((9, 11), (3, 5), taps, strict=True):
            block = np.array(target.embed(mx.array([anchor] + [5] * 5)) * nested.get("input_embedding_scale", 1))
            expected = by_definition.hidden(block, np.array(mx.concatenate(own)))[1 : 1 + depth]
            states, tokens = zip(*(next(found) for _ in range(depth)), strict=True)
            assert np.abs(np.array(states) - expected).max() < 1e-5 * np.abs(expected).max()
            logits = np.array(target.head(mx.array(expected, mx.float32))) * nested.get("output_multiplier", 1)
            if cap := nested.get("final_logit_softcapping"):
                logits = cap * np.tanh(logits / cap)
            assert list(tokens) == by_definition.chain(expected, logits, anchor)


@pytest.mark.parametrize("shape", SHAPES)
def test_drafts_what_z_lab_s_implementation_drafts(tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs_module: Any = pytest.importorskip("dflash.model_mlx", reason="z-lab's package is installed by `make test`")
    folder = write(tmp_path / "draft", SHAPES[shape])
    contexts = Contexts(load_draft(folder))
    monkeypatch.setattr(theirs_module, "snapshot_download", lambda *_, **__: str(folder))
    theirs: Any = theirs_module.load_draft("x").bind(contexts.target.model)
    states, proposals = theirs.make_cache(), theirs.make_cache()
    # Never a single token once its window is full: then it takes the keys of its ring in the wrong order.
    for counts in ((3, 7), (1, 3), (2, 12)):
        _, taps = contexts.grow(*counts)
        asked = contexts.rows(2, 5)
        block = mx.array([[11] + [5] * 5])
        expected = theirs.hidden_states(block, taps[None], states, 1)[0]
        assert np.allclose(
            np.array(contexts.drafter.score(*asked).hidden)[2:],
            np.array(expected),
            rtol=0,
            atol=1e-5 * float(mx.abs(expected).max()),
        )
        tokens, *_ = theirs.propose(block, taps[None], proposals, 0.0, logits_start=1)
        assert np.array(contexts.drafter.draft_blocks(*asked)).tolist()[2:] == tokens[0].tolist()


def test_a_chain_does_not_depend_on_how_deep_it_or_its_neighbours_are() -> None:
    contexts = Contexts(random_draft())
    contexts.grow(4, 9)
    whole = np.array(contexts.drafter.draft_blocks(*contexts.rows(5, 5))).tolist()
    assert whole[:5] != whole[5:]
    for first, second in ((1, 1), (1, 5), (4, 2)):
        drafted = np.array(contexts.drafter.draft_blocks(*contexts.rows(first, second))).tolist()
        assert drafted == [*whole[:first], *whole[5 : 5 + second]]


def test_a_block_s_first_slots_do_not_leak_from_the_row_before() -> None:
    contexts = Contexts(random_draft())
    contexts.grow(4, 9)
    (first, second), anchors, cursors = contexts.rows(5, 5)
    together = contexts.drafter.score([first, second], anchors, cursors).hidden[5:]
    alone = contexts.drafter.score([second], anchors, cursors).hidden
    other = contexts.drafter.score([first, second], mx.array([77, 11], mx.int32), cursors).hidden[5:]
    assert np.allclose(np.array(together), np.array(alone), atol=1e-5)
    assert np.allclose(np.array(together), np.array(other), atol=1e-5)


def test_coefficients_and_codes_are_not_quantised(tmp_path: Path) -> None:
    draft: Any = load_draft(write(tmp_path / "draft"), quantize_bits=8)
    quantised = {name.rpartition(".")[0] for name, _ in arrays(draft) if name.endswith(".scales")}
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    wanted = [*attention, *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]
    assert quantised == {"fc", *(f"layers.{i}.{name}" for i in range(2) for name in wanted)}


def test_a_quantised_checkpoint_says_what_is_quantised(tmp_path: Path) -> None:
    folder = write(tmp_path / "draft")
    draft = load_draft(folder, quantize_bits=8)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(arrays(draft)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization": {"group_size": 64, "bits": 8}}))
    again = load_draft(folder)
    assert all(mx.array_equal(a, b) for (_, a), (_, b) in zip(arrays(draft), arrays(again), strict=True))


def test_the_published_configuration() -> None:
    layers = ["sliding_attention"] * 5
    nested = dict(block_size=8, conv_group_size=16, conv_kernel_size=2, mask_token_id=248070)
    config = DFlash2Config.from_dict(
        {
            "architectures": ["DFlash2DraftModel"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "dflash_config": {
                **nested,
                "selector_rank": 256,
                "selector_top_k": 16,
                "target_layer_ids": [5, 19, 33, 47, 61],
            },
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 5120,
            "intermediate_size": 17408,
            "is_causal": False,
            "layer_types": layers,
            "max_position_embeddings": 262144,
            "model_type": "qwen3",
            "num_attention_heads": 32,
            "num_hidden_layers": 5,
            "num_key_value_heads": 8,
            "num_target_layers": 64,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_theta": 10000000, "rope_type": "default"},
            "sliding_window": 2048,
            "tie_word_embeddings": False,
            "use_sliding_window": True,
            "vocab_size": 248320,
        }
    )
    assert (config.block_size, config.rope_theta, config.rope_scaling) == (8, 1e7, None)
    assert (config.conv_kernel_size, config.conv_group_size) == (2, 16)
    assert (config.selector_rank, config.selector_top_k) == (256, 16)
    assert (config.is_causal, config.sliding_window, config.final_logit_softcapping) == (False, 2048, None)
    assert resolve("mlx-community/Qwen3.8-27B-4bit").draft == resolve("qwen3.8-27b").draft


def nested(**changes: Any) -> dict[str, Any]:
    return {"dflash_config": {name: value for name, value in {**NESTED, **changes}.items() if value is not None}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["Qwen3DFlash2Model"]}, "Qwen3DFlash2Model is not supported"),
        ({"speculators_model_type": "dflash2"}, "speculators_model_type: this layout"),
        ({"selector_vocab_size": 32000}, "selector_vocab_size: this layout"),
        ({"hidden_act": "gelu"}, "has hidden_act"),
        ({"attention_bias": True}, "has attention_bias"),
        (nested(use_swa=True), "has use_swa"),
        (nested(selector_rank=None), "no selector_rank"),
        (nested(selector_top_k=0), "no selector_top_k"),
        (nested(conv_kernel_size=None), "no conv_kernel_size"),
        (nested(conv_group_size=0), "no conv_group_size"),
        (nested(conv_group_size=24), "conv_group_size does not divide"),
        (nested(conv_kernel_size=7), "conv_kernel_size is larger"),
        (nested(selector_top_k=97), "selector_top_k is larger"),
        (nested(mask_token_id=None), "mask_token_id"),
        ({"layer_types": ["full_attention"]}, "1 layer_types, but 2 layers"),
    ],
)
def test_a_configuration_that_means_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = write(tmp_path / "draft")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    with pytest.raises(ModelError, match=message) as error:
        load_draft(folder)
    assert "\n" not in str(error.value)


def renamed(old: str, new: str | None) -> Callable[[dict[str, Any]], None]:
    def edit(weights: dict[str, Any]) -> None:
        taken = weights.pop(old)
        if new:
            weights[new] = taken

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (renamed("layers.1.mlp_conv.base_kernel", None), "layers.1.mlp_conv.base_kernel is missing"),
        (
            renamed("candidate_selector.successor_codebook", "candidate_selector.successor_codebook.weight"),
            "candidate_selector.successor_codebook is missing",
        ),
        (
            lambda weights: weights.update({"layers.0.self_attn.q_proj.bias": mx.zeros(128)}),
            "layers.0.self_attn.q_proj.bias is unknown in a DFlash2DraftModel",
        ),
    ],
)
def test_weights_that_do_not_belong_are_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder = write(tmp_path / "draft")
    weights: Any = mx.load(str(folder / "model.safetensors"))
    edit(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    with pytest.raises(ModelError, match=message):
        load_draft(folder)


def test_a_dflash_2_head_does_not_run_as_a_dflash_draft(tmp_path: Path) -> None:
    folder = write(tmp_path / "draft")
    config = {**CONFIG, "architectures": ["DFlashDraftModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="is unknown in a DFlashDraftModel"):
        load_draft(folder)
