"""Models that load at once, for tests of whole runs: most of a load is the vocabulary, so theirs is small, too."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import orjson

VOCABULARY = 2048

SMALL = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "head_dim": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def small_model(boxed: Path, folder: Path) -> str:
    """Makes one in `folder`, with the first tokens of the unpacked default model and small random weights; returns its
    path, which is its name as a pair.
    """
    return _made(boxed, folder, "llama", {})


def plain_model(boxed: Path, folder: Path) -> str:
    """The same of an architecture that has no adapter: Phi-3."""
    return _made(boxed, folder, "phi3", {"rope_scaling": None, "tie_word_embeddings": False})


def _made(boxed: Path, folder: Path, family: str, changes: dict[str, Any]) -> str:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    shutil.copytree(boxed, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors*"))
    _shorten(folder / "tokenizer.json")
    config = orjson.loads((folder / "config.json").read_bytes())
    config.pop("quantization", None)
    config |= SMALL | changes | {"model_type": family}
    (folder / "config.json").write_bytes(orjson.dumps(config))
    module = import_module(f"mlx_lm.models.{family}")
    weights = dict(tree_flatten(module.Model(module.ModelArgs.from_dict(config)).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return str(folder)


def _shorten(file: Path) -> None:
    """Leaves a tokenizer its first tokens, and the merges that make these."""
    tokenizer = orjson.loads(file.read_bytes())
    model = tokenizer["model"]
    model["vocab"] = {token: id for token, id in model["vocab"].items() if id < VOCABULARY}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    file.write_bytes(orjson.dumps(tokenizer))
