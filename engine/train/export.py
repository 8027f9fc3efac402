"""The finished draft's folder: `config.json`, `model.safetensors` and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model

from ..drafting.dflash import ARCHITECTURE, DFlashDraft
from .recipe import Recipe
from .responses import write_atomically

GROUP = 64
"""Weights that share a scale in an 8-bit draft."""

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


def export(draft: DFlashDraft, folder: Path, bits: int) -> DFlashDraft:
    """Write a copy of the draft in `bits` 8 or 16, as `load_draft` reads it; returns what it then is, in float32."""
    config = {name: value for name, value in asdict(draft.config).items() if value is not None}
    raw: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen3",
        **{name: value for name, value in config.items() if name not in SPECULATION},
        "dflash_config": {name: config[name] for name in SPECULATION},
    }
    copy = DFlashDraft(draft.config)
    copy.update(draft.parameters())
    copy.set_dtype(mx.float16)
    if bits == 8:
        nn.quantize(copy, group_size=GROUP, bits=bits)
        raw["quantization"] = {"group_size": GROUP, "bits": bits}
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
    lines = [
        f"# DFlash draft for {story.target}",
        "",
        f"A block-diffusion draft for speculative decoding: {config.num_hidden_layers} layers of the target's shape, "
        f"blocks of {config.block_size} tokens, features from the target's layers {taps} (0-based, after the layer), "
        f"mask token {config.mask_token_id}. It has neither embedding nor head: both are the target's. "
        + ("8-bit weights in groups of 64." if bits == 8 else "Float16 weights."),
        "",
        "Made by `draftmill train`; the method is that of the DFlash paper. It can only propose: what is generated is "
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
        f"{story.steps:,} steps in {story.seconds:,.0f} s on {story.device}. Layers start as copies of the "
        "target's last ones. Several blocks of a sequence in one pass, each seeing only the context before its "
        "anchor; cross-entropy through the target's frozen head, weighted exp(-(i - 1) / gamma) over the slots i of "
        "a block; AdamW, warm-up, cosine to zero, gradients clipped.",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in asdict(recipe).items()),
        "",
    ]
    write_atomically(folder / "README.md", "\n".join(lines).encode())


def count_tokens(sequences: Sequence[Any]) -> int:
    return sum(len(sequence.tokens) - sequence.prompt for sequence in sequences)
