"""The finished draft's folder: `config.json`, `model.safetensors` and a model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model

from ..drafting.dflash import DFlashDraft, DraftConfig
from ..drafting.dspark import DSparkDraft
from .recipe import Recipe
from .responses import write_atomically

GROUPS = (64, 32)
"""How many weights share a scale: the first of these that fits."""

OF_HEADS = ("markov_rank", "markov_head", "backbone")
"""Settings that say nothing where there is no Markov head."""

LEARNING = (
    "Layers start as copies of the target's last ones. Several blocks of a sequence in one pass, each seeing only the "
    "context before its anchor; cross-entropy through the target's frozen head."
)
LEARNING_HEAD = (
    "The finished draft drafted blocks at random anchors, once; the head learnt to weigh each slot's 32 likeliest "
    "tokens as the target does, told the true tokens before it. Cross-entropy with the target's probabilities."
)
"""What a model card says of the loss: of a whole draft, and of a head alone."""

SPECULATION = ("target_layer_ids", "mask_token_id", "block_size")
"""Fields that belong into `dflash_config`."""


@dataclass(frozen=True)
class Story:
    """What a model card tells of a run, besides its recipe."""

    target: str
    prompts: Mapping[str, int]
    """Where prompts came from -> how many."""
    responses: int
    response_tokens: int
    steps: int
    seconds: float
    device: str
    held_back: int
    held_back_figure: float
    measured: Mapping[str, tuple[int, float]]
    """Prompt file never trained on -> prompts and tokens per round."""


def described(config: DraftConfig, head: Mapping[str, Any]) -> dict[str, Any]:
    """A draft's `config.json`: DFlash's, or with the fields of a Markov `head` DSpark's in the nested layout."""
    fields = {field.name for field in dataclass_fields(DraftConfig)}
    said = {name: value for name, value in asdict(config).items() if name in fields and value is not None}
    kind = DSparkDraft if head else DFlashDraft
    dspark = {"projector_type": "dspark", "sample_from_anchor": False, **head} if head else {}
    return {
        "architectures": [kind.architecture],
        "model_type": "qwen3",
        **{name: value for name, value in said.items() if name not in SPECULATION},
        "dflash_config": {**{name: said[name] for name in SPECULATION}, **dspark},
    }


def settings(bits: int) -> Callable[[str, nn.Module], bool | dict[str, int]]:
    """How each layer of a draft in `bits` is quantised, False for not at all."""

    def setting(path: str, layer: nn.Module) -> bool | dict[str, int]:
        weight: Any = layer.get("weight")
        group = weight is not None and next((size for size in GROUPS if weight.shape[-1] % size == 0), None)
        if not group or not hasattr(layer, "to_quantized"):
            return False
        return {"group_size": group, "bits": bits}

    return setting


def quantise(draft: DFlashDraft, bits: int) -> dict[str, Any]:
    """Quantise a draft in place; returns the `quantization` of its `config.json`, in mlx-lm's form."""
    common = {"group_size": GROUPS[0], "bits": bits}
    said: dict[str, Any] = dict(common)
    setting = settings(bits)

    def noted(path: str, layer: nn.Module) -> bool | dict[str, int]:
        found = setting(path, layer)
        if found and found != common:
            said[path] = found
        return found

    nn.quantize(draft, class_predicate=noted)
    return said


def export(draft: DFlashDraft, folder: Path, bits: int) -> DFlashDraft:
    """Write a copy of the draft in `bits` 8 or 16, as `load_draft` reads it; returns what it then is, in float32."""
    config: Any = draft.config
    dspark = isinstance(draft, DSparkDraft)
    head = {name: getattr(config, name) for name in ("markov_rank", "markov_head_type")} if dspark else {}
    raw = described(config, head)
    copy = type(draft)(config)
    copy.update(draft.parameters())
    copy.set_dtype(mx.float16)
    if bits < 16:
        raw["quantization"] = quantise(copy, bits)
    arrays: Any = tree_flatten(copy.parameters())
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / ".model.tmp.safetensors"
    mx.save_safetensors(str(scratch), dict(arrays), metadata={"format": "mlx"})
    scratch.replace(folder / "model.safetensors")
    write_atomically(folder / "config.json", (json.dumps(raw, indent=2) + "\n").encode())
    dequantize_model(copy)
    copy.set_dtype(mx.float32)
    return copy


def write_card(folder: Path, draft: DFlashDraft, recipe: Recipe, story: Story, bits: int) -> None:
    """Write `README.md`: what this draft is, what it was made of and how, and how good it is."""
    config = draft.config
    taps = ", ".join(map(str, config.target_layer_ids))
    kind = "DSpark" if recipe.markov_rank else "DFlash"
    weights = "Float16 weights." if bits == 16 else f"{bits}-bit weights in groups of 64."
    lines = [
        f"# {kind} draft for {story.target}",
        "",
        f"A block-diffusion draft for speculative decoding: {config.num_hidden_layers} layers of the target's shape, "
        f"blocks of {config.block_size} tokens, features from the target's layers {taps} (0-based, after the layer), "
        f"mask token {config.mask_token_id}. It has neither embedding nor head: both are the target's. {weights}",
        "",
        *([_about_head(recipe), ""] if recipe.markov_rank else []),
        f"Made by `draftmill train`; the method is that of the {kind} paper. It can only propose: what is generated is "
        "the target's own output, whatever the draft's quality.",
        "",
        "## Tokens per round",
        "",
        "Greedy, one round = one pass of draft and target; accepted tokens + 1, over all rounds.",
        "",
        "| prompts | how many | tokens per round |",
        "|---|---|---|",
        f"| held back from training | {story.held_back} | {story.held_back_figure:.2f} |",
        *(f"| {name} (never trained on) | {n} | {figure:.2f} |" for name, (n, figure) in story.measured.items()),
        "",
        "## Data",
        "",
        f"{story.responses:,} responses ({story.response_tokens:,} tokens) written greedily by the target itself, to",
        "",
        *(f"- {count:,} prompts: {name}" for name, count in story.prompts.items()),
        "",
        "## Recipe",
        "",
        f"{story.steps:,} steps in {story.seconds:,.0f} s on {story.device}. "
        + (LEARNING_HEAD if recipe.backbone else LEARNING)
        + " Weighted exp(-(i - 1) / gamma) over the slots i of a block; AdamW, warm-up, cosine to zero, gradients "
        "clipped.",
        "",
        "| setting | value |",
        "|---|---|",
        *(
            f"| {name} | {value} |"
            for name, value in asdict(recipe).items()
            if recipe.markov_rank or name not in OF_HEADS
        ),
        "",
    ]
    write_atomically(folder / "README.md", "\n".join(lines).encode())


def _about_head(recipe: Recipe) -> str:
    alone = " Only this head was trained, on a finished draft." if recipe.backbone else ""
    return (
        f"A Markov head ({recipe.markov_head}) adds to each slot's logits what the token before it says, by codes of "
        f"{recipe.markov_rank} numbers.{alone}"
    )


def count_tokens(sequences: Sequence[Any]) -> int:
    return sum(len(sequence.tokens) - sequence.prompt for sequence in sequences)
