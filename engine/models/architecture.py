"""Which of mlx-lm's modules holds the text model of a `config.json`: many types of models share one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_lm.utils import MODEL_REMAPPING

WRAPPERS = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "lfm2-vl": "lfm2",
    "mistral3": "llama",
    "pixtral": "llama",
    "qwen2_vl": "qwen2",
    "qwen3_5": "qwen3_5",
    "qwen3_5_moe": "qwen3_5",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
}
"""mlx-lm's modules of models that also see, each with the module of the text model inside. Their keys of the text
model lie in `text_config`.
"""

OWN_TEXT = {"mistral3": ("ministral3", "mistral4")}
"""Wrappers that hold another text model if `text_config` names it: mlx-lm asks for these names."""


def architecture(config: Mapping[str, Any]) -> str:
    """The module under `mlx_lm.models` that runs the text of a model, or the model's type where mlx-lm has none."""
    module = _module(config)
    own = str(text_part(config).get("model_type"))
    return own if own in OWN_TEXT.get(module, ()) else WRAPPERS.get(module, module)


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the text model."""
    return (_module(config) in WRAPPERS and config.get("text_config")) or config


def model_types(architectures: Mapping[str, Any]) -> list[str]:
    """Every `model_type` whose text runs in one of these modules."""
    wrapping = {wrapper for wrapper, module in WRAPPERS.items() if module in architectures}
    held = {*architectures, *wrapping}
    return sorted({*held, *(name for name, module in MODEL_REMAPPING.items() if module in held)})


def _module(config: Mapping[str, Any]) -> str:
    name = str(config.get("model_type"))
    return MODEL_REMAPPING.get(name, name)
