"""LoRA adapters as `mlx_lm.lora` writes them, with random weights, and the models that mlx-lm fuses of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

ATTENTION = ("self_attn.q_proj", "self_attn.v_proj")
EVERYTHING = (*ATTENTION, "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def write(
    folder: Path, model: Any, seed: int = 0, rank: int = 4, layers: int = 3, keys: tuple[str, ...] = EVERYTHING
) -> Path:
    """An adapter of the last `layers` layers, so strong that texts wander off; `model` becomes mlx-lm's LoRA of it."""
    mx.random.seed(seed)
    parameters = {"rank": rank, "scale": 2.0 + seed, "dropout": 0.0, "keys": list(keys)}
    model.freeze()
    linear_to_lora_layers(model, layers, parameters)
    trained: Any = tree_flatten(model.trainable_parameters())
    weights = {
        name: mx.random.normal(array.shape) * (0.4 if name.endswith("lora_a") else 0.2 / (2 + seed))
        for name, array in trained
    }
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def change(folder: Path, **changes: Any) -> None:
    """Change the configuration of an adapter."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def fused(model: Any, folder: Path) -> Any:
    """What `mlx_lm.fuse --dequantize` makes of a model and an adapter."""
    load_adapters(model, str(folder))
    layers = [(name, layer.fuse(dequantize=True)) for name, layer in model.named_modules() if hasattr(layer, "fuse")]
    model.update_modules(tree_unflatten(layers))
    mx.eval(model.parameters())
    return model


def family(folder: Path, build: Callable[[], Any], keys: tuple[str, ...] = ()) -> tuple[dict[str, Path], list[Any]]:
    """Eight adapters that differ in rank, in the layers and in the modules that they change, and what mlx-lm fuses."""
    folders = {
        f"a{n}": write(folder / f"a{n}", build(), n, 2 + n % 4, 1 + n % 3, keys or (EVERYTHING, ATTENTION)[n % 2])
        for n in range(8)
    }
    return folders, [fused(build(), each) for each in folders.values()]
