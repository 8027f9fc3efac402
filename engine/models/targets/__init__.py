"""Target families: forwards of our own over packed tokens, reading the modules and weights that mlx-lm loaded."""

from __future__ import annotations

from typing import Any

from ..architecture import model_types
from ..boxed import ModelError
from ..config_keys import refuse_unknown
from .gemma2 import Gemma2
from .gemma3 import Gemma3
from .gemma4 import Gemma4
from .gpt_oss import GptOss
from .lfm2 import Lfm2
from .llama import Llama
from .qwen2 import Qwen2
from .qwen3 import Qwen3
from .qwen3_5 import Qwen35
from .qwen3_next import Qwen3Next
from .smollm3 import SmolLM3
from .transformer import Transformer

FAMILIES: dict[str, type[Transformer]] = {
    "gemma2": Gemma2,
    "gemma3_text": Gemma3,
    "gemma4_text": Gemma4,
    "gpt_oss": GptOss,
    "lfm2": Lfm2,
    "lfm2_moe": Lfm2,
    "llama": Llama,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "qwen3_moe": Qwen3,
    "qwen3_5": Qwen35,
    "qwen3_next": Qwen3Next,
    "smollm3": SmolLM3,
}
"""Adapter of each supported module of mlx-lm's that runs text. Qwen3.6 models are of Qwen3.5's types."""

MODEL_TYPES = model_types(FAMILIES)
"""Every supported `model_type`: mlx-lm runs several by one module, and a model that sees has a text model inside."""


class UnsupportedModel(ModelError):
    """A model whose architecture has no adapter here."""


def adapt(model: Any) -> Transformer:
    """The adapter over `model`, a model as `mlx_lm.load` returns it, or over the text model inside one that sees.

    Raises:
        UnsupportedModel: no adapter knows the module of mlx-lm's that runs its text.
        ModelError: this mlx-lm honours a key of its configuration that the adapter does not know.
    """
    text = getattr(model, "language_model", model)
    module = type(text).__module__.rpartition(".")[2]
    family = FAMILIES.get(module)
    if family is None:
        raise UnsupportedModel(f"model type '{module}' is not supported; supported: {', '.join(MODEL_TYPES)}")
    refuse_unknown(module, text.args)
    return family(text)
