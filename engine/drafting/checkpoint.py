"""Reading a draft's checkpoint: which architecture it is, and whether its weights are all there and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..models.folder import ModelError
from ..models.whole import refuse_cut_off
from .dflash import DFlashDraft, arrays
from .dflash2 import DFlash2Draft
from .dspark import DSparkDraft
from .dspark_layouts import is_dspark

DRAFTS: dict[str, type[DFlashDraft]] = {kind.architecture: kind for kind in (DFlashDraft, DFlash2Draft)}
"""By architecture, as `config.json` names it. DSpark's is recognised by more than that."""

OTHER_LAYOUTS = ("speculators_model_type", "selector_vocab_size")
"""Keys of configurations that are written in another way than these architectures'."""


def load_draft(folder: Path, quantize_bits: int | None = None) -> DFlashDraft:
    """Load a draft checkpoint from a folder.

    Args:
        folder: `config.json` and one or more `*.safetensors`.
        quantize_bits: quantise linear layers and embeddings at load, in groups of 64.

    Raises:
        ModelError: unreadable or incomplete, another architecture, weights that are unknown, do not fit or are NaN.
    """
    try:
        raw = json.loads((folder / "config.json").read_bytes())
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"draft {folder}: no *.safetensors file; download it again")
        refuse_cut_off(files)
        stored: list[Any] = [mx.load(str(file)) for file in files]
        weights = {name: array for part in stored for name, array in part.items()}
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"draft {folder}: {error}; download it again") from error
    draft = draft_of(raw)
    weights = draft.adopt({name.removeprefix("model."): array for name, array in weights.items()})
    if quantization := raw.get("quantization"):

        def quantised(path: str, module: nn.Module) -> bool | dict[str, Any]:
            there = hasattr(module, "to_quantized") and f"{path}.scales" in weights
            return there and (quantization.get(path) or True)  # a layer may have other settings than the rest

        nn.quantize(draft, quantization["group_size"], quantization["bits"], class_predicate=quantised)
    expected = {name: array.shape for name, array in arrays(draft)}
    for name, shape in expected.items():
        if name not in weights:
            raise ModelError(f"draft {folder}: weight {name} is missing; download it again")
        if weights[name].shape != shape:
            raise ModelError(f"draft {folder}: weight {name} is {weights[name].shape}, config.json says {shape}")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise ModelError(
            f"draft {folder}: weight {unknown[0]} is unknown in a {draft.architecture}: its drafts would be wrong, "
            "so it is not supported"
        )
    draft.load_weights([(name, weights[name]) for name in expected])
    for name, array in arrays(draft):
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
            raise ModelError(f"draft {folder}: weight {name} holds NaN or infinity; download it again")
    if quantize_bits:
        nn.quantize(draft, group_size=64, bits=quantize_bits)
    draft.eval()
    return draft


def draft_of(config: dict[str, Any]) -> DFlashDraft:
    """A draft with random weights, of the architecture that its configuration names; DFlash's if it names none.

    Raises:
        ModelError: an architecture, a layout or a value that is not supported.
    """
    kind = kind_of(config)
    return kind(kind.configuration.from_dict(config))


def kind_of(config: dict[str, Any]) -> type[DFlashDraft]:
    """The kind of draft that a configuration is for. Raises ModelError if there is none here."""
    if is_dspark(config):
        return DSparkDraft
    if layout := next((key for key in OTHER_LAYOUTS if config.get(key) is not None), None):
        raise ModelError(f"draft config.json has {layout}: this layout is not supported")
    named = config.get("architectures") or [DFlashDraft.architecture]
    kind = next((DRAFTS[name] for name in named if name in DRAFTS), None)
    if kind is None:
        raise ModelError(f"draft architecture {named[0]} is not supported; supported: {', '.join(DRAFTS)}, DSpark's")
    return kind
