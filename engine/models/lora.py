"""LoRA adapters in mlx-lm's format: read, checked against a target, and laid over its linear layers.

Hu et al. 2021 (https://arxiv.org/abs/2106.09685): a linear layer of x gives scale x A B more, A and B being thin.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...kernels.products.low_rank import LowRank
from ..request import Adapters
from .folder import ModelError, first_line
from .linear import Adapted, sizes
from .targets.transformer import Transformer
from .whole import refuse_cut_off

FUSE = "fuse it with mlx_lm.fuse, and serve the model that this writes"

KINDS = {"dora": "a DoRA adapter", "full": "a full fine-tune"}
"""What mlx-lm keeps in such folders beside LoRA."""


@dataclass(frozen=True)
class LoRA:
    """What lies in a folder: of each linear layer, by its path, A [K, r] and B [r, O], and the factor of both."""

    folder: Path
    scale: float
    weights: Mapping[str, tuple[mx.array, mx.array]]


def read(adapters: Adapters) -> list[LoRA]:
    """The adapters that `mlx_lm.lora` has written to folders; raises ModelError."""
    return [_read(folder) for folder in adapters.folders.values()]


def _read(folder: Path) -> LoRA:
    config = _config(folder)
    if "peft_type" in config:
        raise ModelError(f"{folder} holds an adapter of PEFT's, not of mlx-lm's: merge it into its model with PEFT")
    if (kind := config.get("fine_tune_type", "lora")) != "lora":
        raise ModelError(f"{folder} holds {KINDS.get(kind, kind)}, and only LoRA runs beside others: {FUSE}")
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    if not isinstance(scale, int | float):
        raise ModelError(f"{folder / 'adapter_config.json'} does not say lora_parameters.scale: add the factor of A B")
    file = folder / "adapters.safetensors"
    refuse_cut_off([file])
    try:
        arrays: Any = mx.load(str(file))
    except Exception as error:  # whatever the reader objects to
        raise ModelError(f"cannot read {file}: {first_line(error)}; train the adapter again") from error
    weights: dict[str, tuple[mx.array, mx.array]] = {}
    for name in arrays:
        path, _, leaf = name.rpartition(".")
        if leaf not in ("lora_a", "lora_b"):
            raise ModelError(f"{file} has {name}, which is no part of a LoRA: {FUSE}")
        try:
            weights[path] = arrays[f"{path}.lora_a"], arrays[f"{path}.lora_b"]
        except KeyError as error:
            raise ModelError(f"{file} lacks {error.args[0]}: train the adapter again") from None
    return LoRA(folder, float(scale), weights)


def lay(loras: list[LoRA], target: Transformer, model: nn.Module) -> None:
    """Lay adapters over the linear layers of a target. `model` is what mlx-lm loaded, by whose paths they are called.

    Raises:
        ModelError: one was made for another model, or changes what cannot differ from row to row.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    within = {paths[id(module)] for _, _, modules in target.linears() for module in modules}
    for lora in loras:
        for path in lora.weights:
            if path not in paths.values():
                raise ModelError(f"{lora.folder} was made for another model: this one has no {path}")
            if path not in within:
                raise ModelError(
                    f"{lora.folder} changes {path}, and only linear layers of attention, recurrence and plain MLPs "
                    f"may differ from row to row: {FUSE}"
                )
    for layers, index, modules in target.linears():
        named = [(paths[id(module)], module) for module in modules]
        if adapted := _adapted(layers[index], named, loras, target.dtype):
            mx.eval(adapted.adapters.down, adapted.adapters.up)
            layers[index] = adapted


def _adapted(layer: Any, modules: list[tuple[str, Any]], loras: list[LoRA], dtype: mx.Dtype) -> Adapted | None:
    """A layer that consists of these modules, by their paths, with what adapters add; None if that is nothing."""
    downs: list[mx.array] = []
    ups: list[mx.array] = []
    owners: list[int] = []
    width = sum(sizes(module)[1] for _, module in modules)
    for place, lora in enumerate(loras):
        begin = 0
        for path, module in modules:
            inputs, outputs = sizes(module)
            if path in lora.weights:
                down, up = lora.weights[path]
                if down.ndim != 2 or (*down.shape, outputs) != (inputs, *up.shape):
                    raise ModelError(
                        f"{lora.folder} was made for another model: in this one {path} has {inputs} inputs and "
                        f"{outputs} outputs, there A is {down.shape} and B {up.shape}"
                    )
                down, up = down.astype(dtype), (lora.scale * up.astype(mx.float32)).astype(dtype)
                if not (mx.isfinite(down).all() and mx.isfinite(up).all()):
                    raise ModelError(f"{lora.folder} has numbers in {path} that are not finite: train it again")
                downs.append(down.T)
                ups.append(mx.pad(up, [(0, 0), (begin, width - begin - outputs)]))
                owners += [place] * down.shape[1]
            begin += outputs
    return Adapted(layer, LowRank(mx.concatenate(downs), mx.concatenate(ups), tuple(owners))) if owners else None


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} has no adapter_config.json: name a folder that mlx_lm.lora has written") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {file}: {first_line(error)}; train the adapter again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} is not a JSON object: train the adapter again")
    return config
