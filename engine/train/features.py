"""What a finished backbone says of training blocks: worked out once, so that a Markov head learns from it quickly.

Of each slot these are the hidden state and the likeliest tokens with their logits. A head only has to choose among
them, so a step costs thousands of times less than a pass of the backbone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..drafting.dflash import DFlashDraft
from ..models.targets.transformer import Transformer
from .blocks import block_hidden, block_labels, target_states, tokens_before
from .minibatches import pad, spread
from .recipe import Recipe
from .responses import Report, Transcript

CANDIDATES = 32
"""Tokens of a slot among which a head learns to choose."""

AT_ONCE = 32
"""Blocks that are drafted together: each adds to what attention looks through."""


@dataclass(frozen=True)
class Features:
    """Of M blocks with D slots: hidden states [M, D, hidden], the tokens before [M, D], which slots have a true token
    [M, D], and K candidates [M, D, K], the first of them the true token, with their logits [M, D, K] and those of the
    target [M, D, K].
    """

    hidden: np.ndarray
    before: np.ndarray
    valid: np.ndarray
    candidates: np.ndarray
    logits: np.ndarray
    target: np.ndarray

    def __len__(self) -> int:
        return len(self.before)

    def save(self, file: Path) -> None:
        scratch = file.with_suffix(".tmp.npz")
        np.savez(scratch, **{field.name: getattr(self, field.name) for field in fields(self)})
        os.replace(scratch, file)


def load_features(file: Path) -> Features:
    with np.load(file) as arrays:
        return Features(**{field.name: arrays[field.name] for field in fields(Features)})


def write_features(
    target: Transformer,
    draft: DFlashDraft,
    sequences: Sequence[Transcript],
    recipe: Recipe,
    folder: Path,
    report: Report,
) -> list[Path]:
    """The files of features, each of `recipe.anchors` blocks in some sequences; makes those that are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    count = max(1, recipe.batch_tokens // recipe.longest)
    for begin in range(0, len(sequences), count):
        file = folder / f"features-{begin:07}.npz"
        files.append(file)
        if file.exists():
            continue
        random = np.random.default_rng([recipe.seed, 3, begin])
        _of_group(target, draft, sequences[begin : begin + count], recipe.anchors, random).save(file)
        report(f"features of {min(begin + count, len(sequences)):,} of {len(sequences):,} responses")
    return files


def _of_group(
    target: Transformer, draft: DFlashDraft, group: Sequence[Transcript], count: int, random: np.random.Generator
) -> Features:
    """Features of blocks in a few sequences, one after the other."""
    found: list[list[np.ndarray]] = []
    for sequence in group:
        padded, lengths = pad([sequence], len(sequence.tokens))
        anchors = spread(np.array([sequence.prompt]), lengths, count, random)
        found += of_sequence(target, draft, mx.array(padded), mx.array(lengths), mx.array(anchors))
    return Features(*(np.concatenate(part) for part in zip(*found, strict=True)))


def of_sequence(
    target: Transformer, draft: DFlashDraft, tokens: mx.array, lengths: mx.array, anchors: mx.array
) -> list[list[np.ndarray]]:
    """Features of blocks at `anchors` [1, A] of one sequence `tokens` [1, S], a few blocks at a time."""
    block, found = draft.config.block_size, list[list[np.ndarray]]()
    taps, states = target_states(target, tokens, draft.config.target_layer_ids)
    choices = target.head(states[0])
    for begin in range(0, anchors.shape[1], AT_ONCE):
        at = anchors[:, begin : begin + AT_ONCE]
        hidden = block_hidden(target, draft, taps, tokens, at)[0]
        labels, valid = block_labels(tokens, lengths, at, block)
        logits = draft.score(hidden.reshape(-1, hidden.shape[-1]), target).reshape(*hidden.shape[:2], -1)
        before = tokens_before(tokens, at, block)
        likely, scores = candidates(logits, labels[0])
        places = mx.minimum(at[0, :, None] + mx.arange(block - 1), tokens.shape[1] - 1)  # of the tokens before
        chosen = choices[places[..., None], likely].astype(mx.float32)
        arrays = hidden.astype(mx.float16), before[0], valid[0], likely, scores, chosen
        found.append([np.array(array) for array in arrays])
    return found


def candidates(logits: mx.array, labels: mx.array) -> tuple[mx.array, mx.array]:
    """The likeliest tokens [..., K] by `logits` [..., vocabulary], and their logits [..., K] in float32.

    The first one is the true token in `labels` [...]; the unlikeliest gives way to it if it is not among them.
    """
    logits = logits.astype(mx.float32)
    best = mx.argpartition(logits, -CANDIDATES, axis=-1)[..., -CANDIDATES:].astype(mx.int32)
    known = mx.take_along_axis(logits, best, axis=-1)
    gives_way = mx.where(best == labels[..., None], mx.inf, -known)
    place = mx.argmax(gives_way, axis=-1, keepdims=True)
    first = best[..., :1]
    best = mx.put_along_axis(best, place, first, axis=-1)
    tokens = mx.concatenate([labels[..., None], best[..., 1:]], axis=-1)
    return tokens, mx.take_along_axis(logits, tokens, axis=-1)
