"""Configurations: every key that mlx-lm honours is known here, and what would change tokens unheeded is refused."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import pytest
from mlx_lm.models import (
    gemma2,
    gemma3_text,
    gemma4_text,
    gpt_oss,
    lfm2,
    lfm2_moe,
    llama,
    qwen2,
    qwen3,
    qwen3_5,
    qwen3_moe,
    qwen3_next,
    smollm3,
)

from draftmill.engine.models.boxed import ModelError
from draftmill.engine.models.config_keys import (
    CHANGING,
    HONOURED,
    IGNORED,
    beyond,
    harmless,
    refuse_unheeded,
    refuse_unknown,
)
from draftmill.engine.models.targets import FAMILIES

ARGUMENTS: dict[str, Any] = {
    "gemma2": gemma2.ModelArgs,
    "gemma3_text": gemma3_text.ModelArgs,
    "gemma4_text": gemma4_text.ModelArgs,
    "gpt_oss": gpt_oss.ModelArgs,
    "lfm2": lfm2.ModelArgs,
    "lfm2_moe": lfm2_moe.ModelArgs,
    "llama": llama.ModelArgs,
    "qwen2": qwen2.ModelArgs,
    "qwen3": qwen3.ModelArgs,
    "qwen3_moe": qwen3_moe.ModelArgs,
    "qwen3_5": qwen3_5.TextModelArgs,
    "qwen3_next": qwen3_next.ModelArgs,
    "smollm3": smollm3.ModelArgs,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_argument_of_mlx_lm_has_been_looked_at(family: str) -> None:
    names = {field.name for field in fields(ARGUMENTS[family])}
    assert names - HONOURED[family] == IGNORED.get(family, set())


def problem(family: str, **config: Any) -> str:
    with pytest.raises(ModelError) as caught:
        refuse_unheeded({"model_type": family, **config}, "x/config.json")
    message = str(caught.value)
    assert message.startswith("x/config.json says ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", CHANGING)
def test_what_is_not_honoured_is_refused_by_name_and_what_changes_nothing_is_not(family: str, key: str) -> None:
    for value in (None, *harmless(family, key)):
        refuse_unheeded({"model_type": family, key: value}, "x")
    if key in HONOURED[family]:
        refuse_unheeded({"model_type": family, key: 7.5}, "x")
    else:
        assert f"{key} = 7.5" in problem(family, **{key: 7.5})


def test_families_fix_what_others_may_choose() -> None:
    assert "hidden_activation = 'silu'" in problem("gemma3", text_config={"hidden_activation": "silu"})
    assert "swiglu_limit = 5.0" in problem("gpt_oss", swiglu_limit=5.0)
    assert "hidden_act = 'gelu_pytorch_tanh'" in problem("llama", hidden_act="gelu_pytorch_tanh")


def test_keys_of_a_text_model_may_be_nested() -> None:
    assert "hidden_act = 'gelu'" in problem("qwen3_5", text_config={"hidden_act": "gelu"})
    refuse_unheeded({"model_type": "qwen3_5", "hidden_act": "gelu", "text_config": {"hidden_act": "silu"}}, "x")


def test_kinds_of_layers() -> None:
    refuse_unheeded({"model_type": "llama", "layer_types": ["full_attention", "sliding_attention"]}, "x")
    assert "'chunked_attention'" in problem("llama", layer_types=["full_attention", "chunked_attention"])
    assert "'sliding_attention'" in problem("qwen3", layer_types=["full_attention", "sliding_attention"])
    recurrent = ["linear_attention"] * 3 + ["full_attention"]
    refuse_unheeded({"model_type": "qwen3_5", "layer_types": recurrent * 2}, "x")
    refuse_unheeded({"model_type": "gemma3_text", "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}, "x")
    assert "every layer 2" in problem("gemma3_text", layer_types=["sliding_attention"] * 3, sliding_window_pattern=2)
    assert "every layer 2" in problem("qwen3_5_moe", layer_types=recurrent, full_attention_interval=2)


@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_rotations(kind: str) -> None:
    yarn = {kind: "yarn", "factor": 4.0}
    for family in ("llama", "qwen3", "qwen3_5"):
        refuse_unheeded({"model_type": family, "rope_scaling": yarn}, "x")
        assert "'dynamic'" in problem(family, rope_scaling={kind: "dynamic", "factor": 2.0})
    assert "rope_scaling of type 'yarn'" in problem("qwen3_moe", rope_scaling=yarn)
    refuse_unheeded({"model_type": "qwen3_moe", "rope_scaling": {kind: "default"}}, "x")


def test_rotations_where_mlx_lm_does_not_look_for_them() -> None:
    nested = {"rope_theta": 5e5, "rope_type": "default"}
    assert "rope_theta = 500000.0 only in rope_parameters" in problem("llama", rope_parameters=nested)
    refuse_unheeded({"model_type": "llama", "rope_theta": 5e5, "rope_parameters": nested}, "x")
    refuse_unheeded({"model_type": "qwen3", "rope_parameters": nested}, "x")
    scaled = {"rope_type": "llama3", "factor": 8.0}
    assert "'llama3' only in rope_parameters" in problem("llama", rope_parameters=scaled)
    refuse_unheeded({"model_type": "llama", "rope_parameters": scaled, "rope_scaling": scaled}, "x")


def test_rotations_of_which_only_theta_is_read() -> None:
    refuse_unheeded({"model_type": "lfm2", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "x")
    assert "'yarn' only in rope_parameters" in problem("lfm2", rope_parameters={"rope_type": "yarn", "factor": 2.0})


def test_rotations_of_both_kinds_of_layers() -> None:
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    nested = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    gemma = {"model_type": "gemma3_text", "rope_parameters": nested}
    refuse_unheeded({**gemma, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "x")
    assert "'linear' only in rope_parameters" in problem("gemma3_text", rope_parameters=nested)
    assert "rope_theta = 10000.0 only in" in problem(
        "gemma3_text", rope_parameters=nested, rope_scaling=full, rope_local_base_freq=5000.0
    )


def test_rotations_of_each_kind_of_layers() -> None:
    full = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}
    sliding = {"rope_type": "default", "partial_rotary_factor": 1.0, "rope_theta": 1e4}
    nested = {"full_attention": full, "sliding_attention": sliding}
    refuse_unheeded({"model_type": "gemma4_unified", "text_config": {"rope_parameters": nested}}, "x")
    full["rope_type"] = "dynamic"
    assert "'dynamic'" in problem("gemma4", text_config={"rope_parameters": nested})
    full["rope_type"] = "default"
    assert "partial_rotary_factor = 0.25 for a rope" in problem("gemma4_text", rope_parameters=nested)


def test_images_that_see_forward_do_not_matter_to_text() -> None:
    refuse_unheeded({"model_type": "gemma4", "text_config": {"use_bidirectional_attention": "vision"}}, "x")
    assert "'all'" in problem("gemma4", text_config={"use_bidirectional_attention": "all"})


@dataclass
class LaterArguments(llama.ModelArgs):
    """As a later mlx-lm may have them."""

    sink_tokens: int = 0
    sinks: list[int] = field(default_factory=list)
    clip_qkv: float | None = None
    logit_scale: float = 1.0


LLAMA = dict(
    model_type="llama",
    hidden_size=64,
    num_hidden_layers=1,
    intermediate_size=64,
    num_attention_heads=4,
    rms_norm_eps=1e-5,
    vocab_size=96,
)


@pytest.mark.parametrize(
    ("key", "value"), [("sink_tokens", 4), ("sinks", [1]), ("clip_qkv", 8.0), ("logit_scale", 0.5)]
)
def test_what_only_a_later_mlx_lm_honours_is_left_to_it(key: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**LLAMA, key: value}
    assert beyond(config) is None
    if key in CHANGING:
        assert f"{key} = {value}" in problem("llama", **{key: value})
    monkeypatch.setattr(llama, "ModelArgs", LaterArguments)
    assert beyond(config) == key
    refuse_unheeded(config, "x")
    assert beyond(LLAMA) is None
    assert beyond({**LLAMA, "logit_scale": 1, "sinks": [], "clip_qkv": None}) is None
    assert "hidden_act = 'gelu'" in problem("llama", **config, hidden_act="gelu")
    with pytest.raises(
        ModelError, match=rf"this mlx-lm honours {key} = .* in models of type llama, the adapter .* not"
    ):
        refuse_unknown("llama", LaterArguments.from_dict(config))
    refuse_unknown("llama", LaterArguments.from_dict(LLAMA))
