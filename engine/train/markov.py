"""A Markov head for a draft: what a backbone needs to become a DSpark draft, before anything is learnt."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import dequantize_model

from ..drafting.checkpoint import load_draft
from ..drafting.dflash import DFlashDraft
from ..drafting.drafter import check_fit
from ..drafting.dspark import DSparkConfig, DSparkDraft
from ..models.targets.transformer import Transformer
from .export import described, settings
from .prompts import TrainingError
from .recipe import Recipe

CODE_SIZE = 0.5
"""Root mean square of the numbers in a code at the beginning."""


def load_backbone(folder: Path, target: Transformer, bits: int) -> DFlashDraft:
    """A finished DFlash draft, rounded to the `bits` that it will be exported in, then in float32.

    Raises:
        ModelError: it cannot be loaded, or does not fit the target.
        TrainingError: it is of another kind.
    """
    draft = load_draft(folder)
    if type(draft) is not DFlashDraft:
        raise TrainingError(
            f"--backbone {folder} is a {draft.architecture}; only a DFlashDraftModel takes a Markov head"
        )
    check_fit(draft, target)
    dequantize_model(draft)
    if bits < 16:
        nn.quantize(draft, class_predicate=settings(bits))
        dequantize_model(draft)
    draft.set_dtype(mx.float32)
    return draft


def recipe_of(backbone: DFlashDraft, folder: Path, bits: int, recipe: Recipe) -> Recipe:
    """The recipe with the backbone's own shape, and what its folder holds by a digest."""
    config, digest = backbone.config, hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return replace(
        recipe,
        layers=config.num_hidden_layers,
        taps=len(config.target_layer_ids),
        block=config.block_size,
        backbone=f"sha256 {digest.hexdigest()[:12]}, in {bits} bits",
    )


def with_head(backbone: DFlashDraft, target: Transformer, recipe: Recipe) -> DSparkDraft:
    """The backbone with a Markov head that adds nothing yet, in float32.

    Tokens begin with codes that tell similar ones: the directions in which the target's embeddings differ most.

    Raises:
        ModelError: DSpark's configuration cannot say what this backbone is.
    """
    causal = {backbone.causal(layer) for layer in range(len(backbone.layers))}
    if len(causal) > 1:
        raise TrainingError("this backbone is causal in some layers only, which a DSpark draft cannot be")
    config = replace(backbone.config, is_causal=causal.pop())
    head = dict(markov_rank=recipe.markov_rank, markov_head_type=recipe.markov_head)
    draft = DSparkDraft(DSparkConfig.from_dict(described(config, head)))
    draft.update(backbone.parameters())
    added = draft.markov_head
    added.markov_w1.weight = directions(target.embed_drafts(mx.arange(target.vocabulary)), recipe.markov_rank)
    added.markov_w2.weight = mx.zeros_like(added.markov_w2.weight)
    draft.set_dtype(mx.float32)
    mx.eval(draft.parameters())
    return draft


def directions(embeddings: mx.array, rank: int) -> mx.array:
    """Embeddings [vocabulary, hidden] along the `rank` directions in which they differ most [vocabulary, rank].

    Numbers beyond the hidden size are random.
    """
    centred = embeddings.astype(mx.float32)
    centred = centred - centred.mean(axis=0)
    _, vectors = mx.linalg.eigh(centred.T @ centred, stream=mx.cpu)
    codes = centred @ vectors[:, -rank:]
    codes = codes * (CODE_SIZE / mx.sqrt(codes.square().mean()))
    beyond = mx.random.normal((len(codes), max(rank - codes.shape[1], 0))) * CODE_SIZE
    return mx.concatenate([codes, beyond], axis=1)
