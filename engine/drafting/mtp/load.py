"""Reading a model's MTP head: from its own checkpoint, where mlx-lm leaves it out, or from a folder of the head alone.

Checkpoints differ in names, in how experts lie together, in what is quantised, and in whether the weights of norms are
stored less 1.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...models.folder import ModelError, dequantised, first_line, read_json
from ...models.targets.qwen3_5 import Qwen35
from ...models.targets.transformer import Transformer
from ...models.whole import refuse_cut_off
from .head import MTP, MTPHead

MODEL_TYPES = ("qwen3_5_mtp", "qwen3_5_moe_mtp")
"""What a folder of a head alone calls itself."""

PREFIX = "mtp."
"""What stands before a head's names in a model's own checkpoint, perhaps behind another prefix."""

OWN_FILES, BESIDE = "model*.safetensors", ("mtp*.safetensors", "mtp/*.safetensors")
"""Where a model's own head may be: among its weights, or in files of its own, where names may lack the prefix."""

NEAR_ONE = ("input_layernorm", "post_attention_layernorm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
"""Norms whose weights are near 1, or near 0 where they are stored less 1."""

EXPERT = re.compile(r"(.*mlp)\.experts\.(\d+)\.(\w+)\.(\w+)")

Weights = dict[str, mx.array]


def is_head(folder: Path) -> bool:
    """Whether a folder holds an MTP head alone."""
    return read_json(folder / "config.json").get("model_type") in MODEL_TYPES


def has_own_head(folder: Path) -> bool:
    """Whether a model's folder holds an MTP head beside the model. A configuration may name one that is not there."""
    return bool(_own(folder)[0])


def own_head(target: Transformer, folder: Path, bits: int | None = None) -> MTP | None:
    """The head in a target's own checkpoint, None if there is none; `bits` quantises what of it is not.

    Raises:
        ModelError: a head that cannot be read, or of a family whose heads are not known.
    """
    weights, raw = _own(folder)
    return _made(target, weights, raw, folder, bits) if weights else None


def separate_head(target: Transformer, folder: Path, bits: int | None = None) -> MTP:
    """The head that a folder holds alone; `bits` quantises what of it is not.

    Raises:
        ModelError: it cannot be read, or is not the target's.
    """
    stored = _read(sorted(folder.glob("*.safetensors")))
    if not stored:
        raise ModelError(f"MTP head {folder}: no *.safetensors file; download it again")
    weights = {name.rpartition(PREFIX)[2]: array for name, array in stored.items()}
    return _made(target, weights, _less_one(weights), folder, bits)


def _own(folder: Path) -> tuple[Weights, bool]:
    """The weights of a head beside a model's, by their names in the head, and whether its norms are stored less 1."""
    weights: Weights = {}
    stored = _read(sorted(folder.glob(OWN_FILES)))
    for name, array in stored.items():
        if PREFIX in name:
            weights[name.partition(PREFIX)[2]] = array
    for name, array in _read(file for pattern in BESIDE for file in sorted(folder.glob(pattern))).items():
        weights[name.rpartition(PREFIX)[2]] = array
    # As mlx-lm tells whether a checkpoint is as it was published.
    published = any("conv1d.weight" in name and array.shape[-1] != 1 for name, array in stored.items())
    return weights, published or _less_one(weights)


def _read(files: Iterable[Path]) -> Weights:
    """The arrays of some files. They are read from the disk when they are needed."""
    weights: Weights = {}
    for file in files:
        refuse_cut_off([file])
        try:
            stored: Any = mx.load(str(file))
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"cannot read {file}: {first_line(error)}; download it again") from error
        weights.update(stored)
    return weights


def _less_one(weights: Mapping[str, mx.array]) -> bool:
    """Whether the weights of norms look as if 1 is to be added."""
    means: Any = [array.mean().item() for name, array in weights.items() if any(norm in name for norm in NEAR_ONE)]
    return bool(means) and median(means) < 0.5


def _made(target: Transformer, weights: Weights, raw: bool, folder: Path, bits: int | None) -> MTP:
    if type(target) is not Qwen35:
        raise ModelError(f"MTP head {folder}: heads of {type(target).__name__} models are not supported, Qwen3.5's are")
    weights = _experts_together(weights)
    if raw:
        weights = {name: x + 1 if x.ndim == 1 and "norm" in name else x for name, x in weights.items()}
    head = MTPHead(target.model.args)
    _quantise_as_stored(head, weights, folder)
    expected = {name: array.shape for name, array in arrays(head)}
    for name, shape in expected.items():
        if name not in weights:
            raise ModelError(f"MTP head {folder}: weight {name} is missing; download it again")
        if weights[name].shape != shape:
            raise ModelError(f"MTP head {folder}: weight {name} is {weights[name].shape}, the target's size is {shape}")
    if unknown := sorted(set(weights) - set(expected)):
        raise ModelError(f"MTP head {folder}: weight {unknown[0]} is not known; such a head is not supported")
    head.load_weights(list(weights.items()))
    if mx.default_device() == mx.cpu:  # where quantised weights crawl
        head = dequantised(head)
    elif bits:
        nn.quantize(head, group_size=64, bits=bits, class_predicate=lambda _, layer: hasattr(layer, "to_quantized"))
    head.set_dtype(target.dtype)
    for name, array in arrays(head):
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
            raise ModelError(f"MTP head {folder}: weight {name} holds NaN or infinity; download it again")
    head.eval()
    return MTP(head, target)


def _experts_together(weights: Weights) -> Weights:
    """The weights of experts by mlx-lm's names, those of all experts in one array.

    As published they are one array with gates first, then ups; or each expert has its own.
    """
    together: Weights = {}
    numbered: defaultdict[str, dict[int, mx.array]] = defaultdict(dict)
    for name, array in weights.items():
        if found := EXPERT.fullmatch(name):
            mlp, number, projection, kind = found.groups()
            numbered[f"{mlp}.switch_mlp.{projection}.{kind}"][int(number)] = array
        elif name.endswith("mlp.experts.gate_up_proj"):
            gate, up = mx.split(array, 2, axis=-2)
            switch = name.replace("experts.gate_up_proj", "switch_mlp")
            together |= {f"{switch}.gate_proj.weight": gate, f"{switch}.up_proj.weight": up}
        elif name.endswith("mlp.experts.down_proj"):
            together[name.replace("experts.down_proj", "switch_mlp.down_proj.weight")] = array
        else:
            together[name] = array
    return together | {name: mx.stack([own[i] for i in sorted(own)]) for name, own in numbered.items()}


def _quantise_as_stored(head: MTPHead, weights: Weights, folder: Path) -> None:
    """Quantise the layers that are stored so. Bits and groups are seen from arrays: they need not be the target's."""
    config = read_json(folder / "config.json")
    said: Any = config.get("quantization") or config.get("quantization_config") or {}

    def settings(path: str, layer: nn.Module) -> bool | dict[str, Any]:
        scales, packed = weights.get(f"{path}.scales"), weights.get(f"{path}.weight")
        if scales is None or packed is None or not hasattr(layer, "to_quantized"):
            return False
        inputs = layer["weight"].shape[-1]
        mode = "affine" if f"{path}.biases" in weights else said.get("mode")
        return dict(group_size=inputs // scales.shape[-1], bits=packed.shape[-1] * 32 // inputs, mode=mode)

    try:
        nn.quantize(head, class_predicate=settings)
    except (TypeError, ValueError) as error:
        raise ModelError(f"MTP head {folder}: its quantisation is not known: {first_line(error)}") from error


def arrays(head: nn.Module) -> list[tuple[str, mx.array]]:
    """A head's parameters by their names in a checkpoint."""
    flat: Any = tree_flatten(head.parameters())
    return flat
