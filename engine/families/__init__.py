"""Target families: forwards of our own over packed tokens, reading the modules and weights that mlx-lm loaded."""

from __future__ import annotations

from typing import Any

from .llama import Llama
from .qwen3 import Qwen3
from .transformer import Transformer

FAMILIES: dict[str, type[Transformer]] = {"llama": Llama, "qwen3": Qwen3}
"""Adapter of each supported `model_type`."""


class UnsupportedModel(ValueError):
    """A model whose architecture has no adapter here."""


def adapt(model: Any) -> Transformer:
    """The adapter over `model`, a model as `mlx_lm.load` returns it.

    Raises:
        UnsupportedModel: no adapter knows its `model_type`.
    """
    family = FAMILIES.get(model.model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedModel(f"model type '{model.model_type}' is not supported; supported: {known}")
    return family(model)
