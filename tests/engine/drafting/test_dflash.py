"""The draft model against z-lab's own MLX implementation, and every way in which a checkpoint can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from draftmill.engine.drafting.checkpoint import load_draft
from draftmill.engine.drafting.dflash import ARCHITECTURE, DFlashDraft, DraftConfig, default_taps
from draftmill.engine.drafting.drafter import Drafter, DraftRow
from draftmill.engine.engine import Engine
from draftmill.engine.models.folder import ModelError
from draftmill.engine.models.targets import adapt
from draftmill.engine.request import Request
from draftmill.kernels.pages.places import Places, tabled
from tests.engine.small import VOCABULARY, NumberTokenizer, llama_model

CONFIG: dict[str, Any] = dict(
    architectures=[ARCHITECTURE],
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=96,
    vocab_size=VOCABULARY,
    rms_norm_eps=1e-6,
    max_position_embeddings=512,
    rope_theta=10000.0,
    num_target_layers=3,
    block_size=6,
    dflash_config={"mask_token_id": 5, "target_layer_ids": [0, 2]},
)

SHAPES: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"is_causal": True},
    "sliding": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 9},
    "sliding both ways": {"layer_types": ["sliding_attention"] * 2, "sliding_window": 9, "is_causal": False},
    "scaled": {"dflash_config": {**CONFIG["dflash_config"], "final_logit_softcapping": 3.0, "output_multiplier": 0.5}},
    "nested rope": {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "long rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
}


def write(folder: Path, changes: dict[str, Any] | None = None, prefix: str = "") -> Path:
    """A random checkpoint on disk."""
    mx.random.seed(4)
    config = {key: value for key, value in {**CONFIG, **(changes or {})}.items() if value is not None}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(DFlashDraft(DraftConfig.from_dict(config)).parameters()))
    noisy = {prefix + name: w * 2 + 0.1 * mx.random.normal(w.shape) for name, w in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), noisy)
    return folder


@pytest.mark.parametrize("shape", SHAPES)
def test_drafts_what_z_lab_s_implementation_drafts(tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs_module: Any = pytest.importorskip("dflash.model_mlx", reason="z-lab's package is installed by `make test`")
    target = adapt(llama_model())
    folder = write(tmp_path / "draft", SHAPES[shape])
    drafter = Drafter(load_draft(folder), target, pages=3)
    monkeypatch.setattr(theirs_module, "snapshot_download", lambda *_, **__: str(folder))
    theirs: Any = theirs_module.load_draft("x").bind(target.model)
    cache = theirs.make_cache()

    # Two rows of context, growing round by round; theirs follows the second one.
    request, cursor, pages = Request("r", (1,)), 0, [2, 1]
    table, _ = tabled([pages])
    for grown in (7, 3, 12):
        taps = [mx.random.normal((grown, 64)) for _ in range(2)]
        places = Places(table, mx.zeros(grown, mx.int32), mx.arange(cursor, cursor + grown, dtype=mx.int32))
        mx.eval(drafter.extend(mx.concatenate(taps, axis=-1), places))
        cursor += grown
        anchors, cursors = mx.array([9, 11], mx.int32), mx.array([0, cursor], mx.int32)
        rows = [
            DraftRow(request, 0, [0], 0, True, 3),
            DraftRow(request, 1, pages, cursor + 2, False, 5),  # the host's bound may be beyond the cursor
        ]
        drafted: Any = drafter.draft_blocks(rows, anchors, cursors).tolist()
        block = mx.array([[11] + [5] * 5])
        logits = theirs(block, mx.concatenate(taps, axis=-1)[None], cache, logits_start=1)
        assert drafted[3:] == mx.argmax(logits[0], axis=-1).tolist()


def test_weights_may_carry_a_prefix(tmp_path: Path) -> None:
    plain, prefixed = (load_draft(write(tmp_path / f"draft{name}", prefix=name)) for name in ("", "model."))
    pairs: Any = zip(tree_flatten(plain.parameters()), tree_flatten(prefixed.parameters()), strict=True)
    assert all(name == other and mx.array_equal(w, v) for (name, w), (other, v) in pairs)


def test_missing_taps_have_defaults() -> None:
    assert default_taps(1, 36) == (18,)
    assert default_taps(5, 36) == (1, 9, 17, 25, 33)
    config = {**CONFIG, "num_target_layers": 36, "mask_token_id": 5, "dflash_config": None}
    assert DraftConfig.from_dict(config).target_layer_ids == (1, 33)


def test_causality_has_three_states() -> None:
    mixed = {**CONFIG, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 9}
    for given, expected in [(None, [True, False]), (True, [True, True]), (False, [False, False])]:
        nested = {"dflash_config": {**CONFIG["dflash_config"], "causal": given}}  # as some heads call it
        for config in ({**mixed, "is_causal": given}, mixed | nested):
            draft = DFlashDraft(DraftConfig.from_dict(config))
            assert [draft.causal(layer) for layer in range(2)] == expected


def test_a_draft_can_be_quantised_at_load(tmp_path: Path) -> None:
    wide = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 128}
    draft = load_draft(write(tmp_path / "draft", wide), quantize_bits=8)
    assert draft.layers[0].mlp.up_proj.bits == 8


def drop_weight(folder: Path) -> None:
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    del weights["layers.1.mlp.up_proj.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


def spoil_weight(folder: Path) -> None:
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["fc.weight"] = weights["fc.weight"] * float("nan")
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def change(**changes: Any) -> Any:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"no \*.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "draft"),
        (truncate, "draft"),
        (drop_weight, "layers.1.mlp.up_proj.weight is missing"),
        (spoil_weight, "fc.weight holds NaN"),
        (change(intermediate_size=32), "config.json says"),
        (change(architectures=["Eagle3DraftModel"]), "Eagle3DraftModel is not supported"),
        (change(layer_types=["linear", "full_attention"]), "linear"),
        (change(layer_types=["sliding_attention"] * 2), "no sliding_window"),
        (change(dflash_config={}), "mask_token_id"),
    ],
)
def test_a_broken_checkpoint_is_one_clear_error(tmp_path: Path, damage: Any, message: str) -> None:
    folder = write(tmp_path / "draft")
    damage(folder)
    with pytest.raises(ModelError, match=message) as error:
        load_draft(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "hidden size 32, target 64"),
        ({"vocab_size": 100}, "vocabulary 100, target 96"),
        ({"num_target_layers": 36}, "36 target layers"),
        ({"dflash_config": {"mask_token_id": 5, "target_layer_ids": [0, 3]}}, "taps"),
        ({"dflash_config": {"mask_token_id": 96, "target_layer_ids": [0, 2]}}, "mask token 96"),
    ],
)
def test_a_draft_of_another_target_is_refused(changes: dict[str, Any], message: str) -> None:
    draft = DFlashDraft(DraftConfig.from_dict({**CONFIG, **changes}))
    with pytest.raises(ModelError, match=message):
        Engine(adapt(llama_model()), NumberTokenizer(), 512, 2, memory=2**20, draft=draft)


def test_a_depth_beyond_the_block_is_refused() -> None:
    draft = DFlashDraft(DraftConfig.from_dict(CONFIG))
    with pytest.raises(ModelError, match="depth 6 is beyond"):
        Engine(adapt(llama_model()), NumberTokenizer(), 512, 2, memory=2**20, draft=draft, depth=6)
