"""Target families: forwards of our own over packed tokens, reading the modules and weights that mlx-lm loaded."""

from __future__ import annotations

from typing import Any

from ..boxed import ModelError
from ..config_keys import refuse_unknown
from .llama import Llama
from .qwen3 import Qwen3
from .qwen3_5 import Qwen35
from .transformer import Transformer

FAMILIES: dict[str, type[Transformer]] = {
    "llama": Llama,
    "qwen3": Qwen3,
    "qwen3_moe": Qwen3,
    "qwen3_5": Qwen35,
    "qwen3_5_moe": Qwen35,
}
"""Adapter of each supported `model_type`. Qwen3.6 models are of Qwen3.5's types."""


class UnsupportedModel(ModelError):
    """A model whose architecture has no adapter here."""


def adapt(model: Any) -> Transformer:
    """The adapter over `model`, a model as `mlx_lm.load` returns it.

    Raises:
        UnsupportedModel: no adapter knows its `model_type`.
        ModelError: this mlx-lm honours a key of its configuration that the adapter does not know.
    """
    family = FAMILIES.get(model.model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedModel(f"model type '{model.model_type}' is not supported; supported: {known}")
    target = family(model)
    refuse_unknown(model.model_type, target.model.args)
    return target
