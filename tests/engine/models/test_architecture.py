"""Types of models that share a module of mlx-lm's: what mlx-lm itself makes of a configuration is what is adapted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from draftmill.engine.models.architecture import architecture
from draftmill.engine.models.folder import load
from draftmill.engine.models.targets import FAMILIES, MODEL_TYPES, adapt
from tests.engine.models.gemma4 import gemma4_model
from tests.engine.small import (
    TEXT,
    VOCABULARY,
    gemma3_model,
    gpt_oss_model,
    llama_model,
    qwen2_model,
    reference,
    requests,
    run,
    small_engine,
)

EVERYTHING = TEXT | dict(
    hidden_size=128,
    num_hidden_layers=4,
    rope_theta=1e4,
    max_position_embeddings=512,
    tie_word_embeddings=False,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=64,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    norm_topk_prob=True,
    full_attention_interval=3,
    partial_rotary_factor=1.0,
    linear_num_value_heads=4,
    linear_num_key_heads=2,
    linear_key_head_dim=16,
    linear_value_head_dim=8,
    linear_conv_kernel_dim=4,
    shared_expert_intermediate_size=64,
    num_local_experts=4,
    norm_eps=1e-5,
    conv_bias=False,
    conv_L_cache=3,
    full_attn_idxs=[1],
    block_dim=128,
    block_multiple_of=32,
    block_ffn_dim_multiplier=1.0,
    block_auto_adjust_ff_dim=False,
    use_expert_bias=False,
    num_dense_layers=1,
    num_kv_shared_layers=1,
    hidden_size_per_layer_input=0,
    rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
)
"""Whatever any family asks for."""


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_mlx_lm_makes_of_a_type_is_what_is_adapted(model_type: str) -> None:
    model_class, args_class = _get_classes({"model_type": model_type})
    config = {"model_type": model_type, **EVERYTHING, "text_config": dict(EVERYTHING, model_type="text")}
    model: Any = model_class(args_class.from_dict(config))
    assert type(adapt(model)) is FAMILIES[architecture(config)]


def test_text_models_that_mlx_lm_asks_for_by_name() -> None:
    assert architecture({"model_type": "mistral3", "text_config": {"model_type": "mistral"}}) == "llama"
    assert architecture({"model_type": "llava", "text_config": {"model_type": "ministral3"}}) == "ministral3"


@pytest.fixture
def saved(boxed_model: Path, tmp_path: Path) -> Any:
    """Writes a model folder of a configuration and weights, with a tokenizer, and returns it."""

    def save(config: dict[str, Any], weights: dict[str, mx.array]) -> Path:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(boxed_model / name, tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(config))
        mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
        return tmp_path

    return save


def test_a_mistral_is_a_llama(saved: Any, tmp_path: Path) -> None:
    model, asked = llama_model(), requests(2)
    arguments = {**vars(model.args), "model_type": "mistral", "max_position_embeddings": 512}
    loaded = load(str(saved(arguments, dict(tree_flatten(model.parameters())))), tmp_path)
    done = run(small_engine(loaded.model), asked)
    assert [list(done[request.id].tokens) for request in asked] == [reference(model, request) for request in asked]


@pytest.mark.parametrize(
    ("model_type", "build", "context"),
    [("gemma3", gemma3_model, 32768), ("gemma4_unified", gemma4_model, 131072), ("qwen2_5_vl", qwen2_model, 32768)],
)
def test_a_model_that_sees_runs_its_text_model(
    model_type: str, build: Any, context: int, saved: Any, tmp_path: Path
) -> None:
    """From a checkpoint with a vision tower, as Hugging Face's and mlx-vlm's name the weights."""
    model, asked = build(), requests(2)
    weights = {f"language_model.{name}": array for name, array in dict(tree_flatten(model.parameters())).items()}
    weights["vision_tower.patch_embed.proj.weight"] = mx.zeros((4, 4))
    text = {name: value for name, value in vars(model.args).items() if name != "max_position_embeddings"}
    loaded = load(
        str(saved({"model_type": model_type, "vocab_size": VOCABULARY, "text_config": text}, weights)), tmp_path
    )
    assert loaded.context_length == context  # as mlx-lm says, where the configuration does not
    done = run(small_engine(loaded.model), asked)
    assert [list(done[request.id].tokens) for request in asked] == [reference(model, request) for request in asked]


def test_gpt_oss_is_read_from_openais_own_files(saved: Any, tmp_path: Path) -> None:
    """Experts in MXFP4: gates and the rest interleaved, in blocks of bytes. On a CPU they become float32."""
    model, asked = gpt_oss_model(hidden_size=64, intermediate_size=64), requests(2)
    nn.quantize(
        model, 32, 4, mode="mxfp4", class_predicate=lambda path, _: path.endswith("_proj") and "experts" in path
    )
    weights = dict(tree_flatten(model.parameters()))
    for experts in [f"model.layers.{index}.mlp.experts" for index in range(3)]:
        both = "gate_up_proj", ("gate_proj", "up_proj")
        for joint, names in (both, ("down_proj", ("down_proj",))):
            for kind, suffix in (("weight", "_blocks"), ("scales", "_scales"), ("bias", "_bias")):
                parts = [weights.pop(f"{experts}.{name}.{kind}") for name in names]
                array = mx.stack(parts, axis=2).flatten(1, 2)
                if kind == "weight":
                    array = array.view(mx.uint8).reshape(*array.shape[:2], -1, 16)
                weights[f"{experts}.{joint}{suffix}"] = array
    config = vars(model.args) | {"max_position_embeddings": 512, "quantization_config": {"quant_method": "mxfp4"}}
    loaded = load(str(saved(config, weights)), tmp_path)
    if mx.default_device() == mx.cpu:
        arrays: Any = tree_flatten(loaded.model.parameters())
        assert {array.dtype for _, array in arrays} == {mx.float32}
    done = run(small_engine(loaded.model), asked)
    assert [list(done[request.id].tokens) for request in asked] == [reference(model, request) for request in asked]


def test_another_text_inside_a_model_that_sees_has_no_adapter() -> None:
    config = {"model_type": "mistral3", "text_config": {**EVERYTHING, "model_type": "ministral3"}}
    assert architecture(config) == "ministral3"
    assert architecture(config) not in FAMILIES
