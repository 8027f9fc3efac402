"""A model that loads at once, for tests of whole runs: the default model's tokenizer and small random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson


def small_model(boxed: Path, folder: Path) -> str:
    """Makes one in `folder` of the unpacked default model; returns its path, which is its name as a pair."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import llama

    shutil.copytree(boxed, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = orjson.loads((folder / "config.json").read_bytes())
    small = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32, "head_dim": 16}
    config.pop("quantization", None)
    config |= small | {"num_attention_heads": 2, "num_key_value_heads": 1}
    (folder / "config.json").write_bytes(orjson.dumps(config))
    weights = dict(tree_flatten(llama.Model(llama.ModelArgs.from_dict(config)).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return str(folder)
