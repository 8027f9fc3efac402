"""In which type of number a model runs: float16 where the chip only emulates the bfloat16 of its weights.

float16 has three bits of precision more, but its largest number is 65,504. Some models go beyond that, so whether it
holds a model is tried as the model is loaded.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from ...kernels.race import measurements
from .folder import LoadedModel, first_line
from .load_check import MOST, distances, fixed_texts, here

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """The type in which a model runs on this machine, and why."""

    dtype: str
    why: str

    def __str__(self) -> str:
        return f"{self.dtype}, {self.why}"


class Float16Embedding(nn.Module):
    """A quantised embedding that has no type of its own, as in MXFP4: MLX would give bfloat16 for it."""

    def __init__(self, embedding: nn.QuantizedEmbedding):
        super().__init__()
        self._embedding = embedding
        self.weight, self.scales = embedding.weight, embedding.scales

    def __call__(self, tokens: mx.array) -> mx.array:
        return self._embedding(tokens).astype(mx.float16)

    def as_linear(self, x: mx.array) -> mx.array:
        return self._embedding.as_linear(x)


def chip() -> str:
    """The name of the GPU on which models run; none on a CPU, where all is float32."""
    return "" if mx.default_device() == mx.cpu else str(mx.device_info().get("device_name", ""))


def emulates_bfloat16(chip: str) -> bool:
    """Whether a chip has no instructions for bfloat16: M1 and M2, with Pro, Max and Ultra."""
    return re.match(r"Apple M[12]\b", chip) is not None


def suited(load: Callable[[], LoadedModel], subject: str, cache: Path, chip: str) -> LoadedModel:
    """What `load` loads, in float16 instead of bfloat16 where the chip emulates that and float16 holds the model.

    What was found is remembered for the `subject`, a model's name and weights. Where float16 does not hold a model, it
    is loaded twice, because what has overflowed cannot be brought back.
    """
    loaded = load()
    if not emulates_bfloat16(chip) or mx.bfloat16 not in types(loaded.model):
        return loaded
    precision = known_precisions(cache).get(subject)
    if precision is None:
        flaw = flaw_in_float16(loaded.model)
        if flaw:
            del loaded
            mx.clear_cache()
            loaded = load()
        precision = in_bfloat16(chip, flaw) if flaw else in_float16(chip)
        remember(subject, precision, cache)
    elif precision.dtype == "float16":
        to_float16(loaded.model)
    if precision.dtype != "float16":
        log.warning("%s runs in %s", loaded.name, precision)
    return replace(loaded, precision=str(precision))


def in_float16(chip: str) -> Precision:
    return Precision("float16", f"because {chip} emulates bfloat16")


def in_bfloat16(chip: str, flaw: str) -> Precision:
    return Precision("bfloat16", f"although {chip} emulates it: in float16 {flaw}")


def types(model: nn.Module) -> set[mx.Dtype]:
    """The types of a model's weights."""
    weights: Any = tree_flatten(model.parameters())
    return {array.dtype for _, array in weights}


def to_float16(model: nn.Module) -> None:
    """Turn a model's bfloat16 into float16, array by array, so that no more than one is there twice."""
    model.set_dtype(mx.float16, lambda kind: kind == mx.bfloat16)
    modules: Any = model.named_modules()
    typeless = [
        (name, Float16Embedding(module))
        for name, module in modules
        if isinstance(module, nn.QuantizedEmbedding) and module.scales.dtype == mx.uint8
    ]
    if typeless:
        model.update_modules(tree_unflatten(typeless))
    weights: Any = tree_flatten(model.parameters())
    for _, array in weights:
        mx.eval(array)


def flaw_in_float16(model: Any) -> str:
    """Turn a bfloat16 model into float16; returns what is wrong with its logits then, or nothing.

    They are mlx-lm's own, of the load check's texts, and must be finite. They may differ from those in bfloat16 by the
    most that the load check ever excuses, because bfloat16 is coarse: with SmolLM2-135M it is 0.025 off float32 in the
    median and 0.06 at most, float16 0.005.
    """
    try:
        vocabulary = logits(model, [0, 1]).shape[-1]
        texts = fixed_texts(vocabulary)
        expected = [logits(model, text) for text in texts]
        mx.eval(expected)
        to_float16(model)
        found = [logits(model, text) for text in texts]
        mx.eval(found)
    except Exception as error:  # whatever a model's module objects to
        return f"mlx-lm fails: {first_line(error)}"
    if expected[0].dtype == mx.bfloat16 and found[0].dtype != mx.float16:
        return "it computes partly in another type"
    if not all(finite(each) for each in found):
        return "its logits are not finite"
    # With experts, a near tie may send some tokens through others: then the lower quarter speaks for all.
    share = 4 if any(isinstance(it, SwitchLinear | QuantizedSwitchLinear) for it in model.modules()) else 2
    errors = [sorted(distances(*pair)) for pair in zip(found, expected, strict=True)]
    worst = max(each[(len(each) - 1) // share] for each in errors)
    return "" if worst <= MOST else f"its logits are off by {worst:.1e}, {MOST:.1e} is excused"  # not so if it is NaN


def logits(model: Any, text: list[int]) -> mx.array:
    """mlx-lm's logits [T, vocabulary] of a text."""
    return model(mx.array([text]), cache=make_prompt_cache(model))[0]


def finite(array: mx.array) -> bool:
    return bool(mx.isfinite(array).all().item())


def known_precisions(cache: Path) -> dict[str, Precision]:
    """What was found on this machine, with this version, by model."""
    found: dict[str, Precision] = {}
    for name, fields in measurements.known(_file(cache), here()).items():
        with suppress(TypeError):
            found[name] = Precision(**fields)
    return found


def remember(subject: str, precision: Precision, cache: Path) -> None:
    known = known_precisions(cache) | {subject: precision}
    measurements.write(_file(cache), here(), {name: asdict(each) for name, each in known.items()})


def _file(cache: Path) -> Path:
    return cache / "precisions.json"
