"""Loading the model that a name stands for: the boxed default, a folder, or a Hugging Face repository."""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from mlx_lm.models.cache import ArraysCache, make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import MODEL_REMAPPING, dequantize_model, load_adapters, load_model, load_tokenizer

from . import boxed
from .architecture import architecture
from .boxed import ModelError
from .config_keys import refuse_unheeded
from .targets import FAMILIES
from .whole import refuse_cut_off

__all__ = ["LoadedModel", "ModelError", "load"]

HUB_FILES = ["*.json", "model*.safetensors", "mtp*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja"]
"""What is fetched of a hub repository: everything a model needs except code."""

TOKENIZERS = ("tokenizer.json", "*.model", "*.tiktoken", "*vocab*")
"""Files of which a tokenizer has one at least. Without, transformers makes an empty one of some types."""

CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "seq_length",
    "model_max_length",
)
"""What configurations call the longest context."""

RECURRENT_CONTEXT = 1 << 20
"""That of a model without attention, whose memory does not grow."""

NVFP4_LARGEST = 448 * 6
"""The largest weight that NVFP4 has without such a scale: the largest scale of a group, times the largest number."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to generate. `context_length` is in tokens, prompt and completion together.

    `precision` says, in one line, why it runs in another type than that of its weights, or why it does not.
    """

    name: str
    model: nn.Module
    tokenizer: TokenizerWrapper
    context_length: int
    precision: str | None = None


def load(name: str, cache: Path, adapter: Path | None = None) -> LoadedModel:
    """Load the model called `name`, as mlx-lm runs it with an adapter; `cache` is where the boxed model is kept.

    Raises `ModelError`. On the CPU backend all weights become float32, for half precision crawls.
    """
    folder = locate(name, cache)
    refuse_unusable(folder)
    refuse_cut_off([*folder.glob("model*.safetensors"), *(adapter.glob("*.safetensors") if adapter else ())])
    try:
        model: Any
        model, config = load_model(folder, lazy=True)
        if adapter:
            model = load_adapters(model, str(adapter))
            model.eval()
        if mx.default_device() == mx.cpu:
            model.set_dtype(mx.float32)
            model = dequantised(model)
            model.set_dtype(mx.float32)  # quantisations without scales in a type of their own give bfloat16
        elif unpacks(name):
            model = dequantised(model)
        mx.async_eval(model.parameters())
        data_alone = {"trust_remote_code": False}  # unset, transformers may ask a person on the terminal
        tokenizer = load_tokenizer(folder, data_alone, config.get("eos_token_id"))  # while MLX computes the weights
        mx.eval(model.parameters())
    except SystemExit as error:
        raise ModelError(
            f"cannot load the model in {folder}: mlx-lm needs another package for models of its type; install that"
        ) from error
    except Exception as error:  # a broken folder can fail anywhere in the loader
        reason = missing_weights(folder) or first_line(error)
        if adapter:
            raise ModelError(f"cannot load the model in {folder} with {adapter}: {reason}") from error
        remedy = "delete that folder" if name == boxed.NAME else "fetch or convert the model again"
        raise ModelError(f"cannot load the model in {folder}: {reason}; {remedy}") from error
    return LoadedModel(name, model, tokenizer, context_length(config, folder, model))


def unpacks(name: str) -> bool:
    """Whether the quantised weights of a model and of its draft become plain ones on this machine.

    On a CPU quantised products crawl. On CUDA MLX compiles some fifteen of them for the boxed pair, for six minutes
    where it has not run before, and a model so small has little to gain by them.
    """
    return mx.default_device() == mx.cpu or (name == boxed.NAME and mx.cuda.is_available())


def dequantised(model: Any) -> Any:
    """A model with plain weights. mlx-lm's own function leaves out the scale that an expert in NVFP4 may have."""
    scales = {
        name: scale
        for name, module in model.named_modules()
        if (scale := getattr(module, "global_scale", None)) is not None
    }
    model = dequantize_model(model)
    for name, module in model.named_modules():
        if name in scales:
            module.weight = module.weight * (scales[name] / NVFP4_LARGEST)[:, None, None]  # [experts, outputs, inputs]
    return model


def locate(name: str, cache: Path) -> Path:
    """The folder that holds the model called `name`, downloaded first if need be."""
    if name == boxed.NAME:
        return boxed.unbox(cache)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{name} is a file: name the folder that holds config.json and model*.safetensors")
    if name.startswith(("/", ".", "~")):
        raise ModelError(f"no such model folder: {name}")
    if name.count("/") != 1:
        raise ModelError(f"unknown model {name!r}: use {boxed.NAME}, a model folder, or a hub id such as owner/name")
    try:
        log.info("fetching %s from the model hub, unless it is here already", name)
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"cannot fetch {name} from the model hub, and it is not on this machine: check the name and "
            "the network, or name a model folder"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot fetch {name} from the model hub ({first_line(error)}): "
            "check the name and the network, or name a model folder"
        ) from error


def refuse_unusable(folder: Path) -> None:
    """Raise `ModelError` for a folder that is no model, is of an architecture that mlx-lm lacks, or runs by own code.

    So it does for a configuration that would change tokens in a way that the family's adapter does not honour.
    """
    config = read_json(folder / "config.json")
    if architecture(config) in FAMILIES:
        refuse_unheeded(config, folder / "config.json")
    elif (family := config.get("model_type")) is None:
        raise ModelError(f"{folder / 'config.json'} has no model_type: fetch or convert the model again")
    elif not known_to_mlx_lm(family):
        raise ModelError(
            f"{folder} holds model type {family!r}, which mlx-lm {version('mlx-lm')} does not know: "
            "choose another model, or try a newer mlx-lm"
        )
    if not any(folder.glob("model*.safetensors")):
        raise ModelError(f"{folder} has no model*.safetensors: convert the model with `mlx_lm.convert`")
    if not any(file for pattern in TOKENIZERS for file in folder.glob(pattern)):
        raise ModelError(f"{folder} has no tokenizer: fetch the model's tokenizer.json and tokenizer_config.json, too")
    if code := config.get("model_file"):
        raise ModelError(f"{folder} has its forward in Python code of its own ({code}), which is never run")


def missing_weights(folder: Path) -> str:
    """Which file of a folder's weights is not there, although its index or a link names it; nothing if all are.

    mlx-lm reads what there is, and an index may be older than the files: only a failure makes this the reason.
    """
    named = {file.name for file in folder.glob("model*.safetensors")}
    with suppress(ModelError, AttributeError):
        named |= {*read_json(folder / "model.safetensors.index.json")["weight_map"].values()}
    missing = sorted(name for name in named if not (folder / name).is_file())
    return f"{missing[0]} is missing" if missing else ""


def known_to_mlx_lm(family: Any) -> bool:
    """Whether mlx-lm has a module for models of this `model_type`."""
    if not isinstance(family, str) or not re.fullmatch(r"[\w-]+", family):
        return False
    return find_spec(f"mlx_lm.models.{MODEL_REMAPPING.get(family, family)}") is not None


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{file.parent} is not a model folder: it has no {file.name}") from None
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{file} is not valid JSON ({error}): fetch the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} is not a JSON object: fetch the model again")
    return content


def context_length(config: dict[str, Any], folder: Path, model: Any) -> int:
    """The model's longest context in tokens; multimodal models keep it in `text_config`.

    Where a configuration leaves it out, mlx-lm may know the usual one of its family.
    """

    def said(section: dict[str, Any]) -> int | None:
        return next((length for key in CONTEXT_KEYS if isinstance(length := section.get(key), int)), None)

    if length := said(config) or said(config.get("text_config") or {}):
        return length
    if all(isinstance(cache, ArraysCache) for cache in make_prompt_cache(model)):
        return RECURRENT_CONTEXT
    if length := said(vars(getattr(model, "language_model", model).args)):
        return length
    raise ModelError(f"{folder / 'config.json'} does not say max_position_embeddings: add the context length in tokens")


def first_line(error: Exception) -> str:
    """What an error says in its first line; if that only announces a list, with the first of it."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    if others and first.rstrip().endswith(":"):
        first = f"{first.rstrip()} {others[0].strip().rstrip(',')}{', …' if others[1:] else ''}"
    return first.rstrip(".: ")[:200]
