"""What a training run repeats step by step: of a whole draft, or of a Markov head on a finished backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from math import inf
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..drafting.dflash import DFlashDraft
from ..drafting.dspark import DSparkDraft
from ..models.targets.transformer import Transformer
from .blocks import block_codes, block_labels, block_logits, block_loss, compiled, target_taps
from .features import load_features
from .minibatches import Minibatches
from .recipe import Recipe
from .replay import Replay
from .responses import Transcript

Arrays = tuple[mx.array, ...]


class Lesson(Protocol):
    """What is learnt. `module` is what is trained, `dtype` the type of its passes, `unit` what `size` counts; it is
    worth measuring every `measure_seconds`.
    """

    dtype: mx.Dtype
    unit: str
    measure_seconds: float

    @property
    def module(self) -> nn.Module: ...

    def batch(self, step: int) -> Arrays:
        """What a step learns from: a function of the seed and the step alone, so that runs can resume."""
        ...

    def size(self, arrays: Arrays) -> int: ...

    def loss(self, arrays: Arrays) -> tuple[mx.array, mx.array]:
        """The loss, and hits [2, slots]: how often each slot of a block was right, and how often it had a label."""
        ...

    def measure(self) -> float:
        """How good the draft is on what was held back, in tokens per round."""
        ...


class BlockLesson:
    """A whole draft learns blocks of the target's responses."""

    unit, measure_seconds = "tokens", 60.0

    def __init__(
        self,
        target: Transformer,
        draft: DFlashDraft,
        sequences: Sequence[Transcript],
        held_back: Sequence[Transcript],
        recipe: Recipe,
    ):
        self.target, self.module, self.recipe, self.dtype = target, draft, recipe, target.dtype
        self.batches = Minibatches(sequences, recipe)
        self.held_back = held_back
        self.replay = Replay(target, draft, recipe.batch_tokens)
        self._taps = compiled(lambda tokens: target_taps(target, tokens, draft.config.target_layer_ids))

    def batch(self, step: int) -> Arrays:
        batch = self.batches.batch(step)
        tokens = mx.array(batch.tokens)
        return self._taps(tokens), tokens, mx.array(batch.lengths), mx.array(batch.anchors)

    def size(self, arrays: Arrays) -> int:
        return int(arrays[2].sum().item())  # pyright: ignore[reportArgumentType]

    def loss(self, arrays: Arrays) -> tuple[mx.array, mx.array]:
        taps, tokens, lengths, anchors = arrays
        logits = block_logits(self.target, self.module, taps, tokens, anchors)
        labels, valid = block_labels(tokens, lengths, anchors, self.recipe.block)
        return block_loss(logits, labels, valid, self.recipe.gamma)

    def measure(self) -> float:
        return self.replay.tokens_per_round(self.held_back)


class HeadLesson:
    """A Markov head learns to choose among the candidates of a finished backbone as the target does, a file of
    features a step.

    It learns the target's probabilities, which say more than what it chose.
    """

    unit, measure_seconds = "blocks", inf  # a measurement takes passes of the backbone, unlike a step

    def __init__(
        self,
        target: Transformer,
        draft: DSparkDraft,
        files: Sequence[Path],
        held_back: Sequence[Transcript],
        recipe: Recipe,
    ):
        self.module, self.recipe, self.dtype = draft.markov_head, recipe, mx.float32
        self.files, self.held_back = files, held_back
        self.replay = Replay(target, draft, recipe.batch_tokens)

    def batch(self, step: int) -> Arrays:
        epoch, place = divmod(step, len(self.files))
        order = np.random.default_rng([self.recipe.seed, 4, epoch]).permutation(len(self.files))
        found = load_features(self.files[order[place]])
        return tuple(mx.array(getattr(found, field.name)) for field in fields(found))

    def size(self, arrays: Arrays) -> int:
        return len(arrays[0])

    def loss(self, arrays: Arrays) -> tuple[mx.array, mx.array]:
        hidden, before, valid, candidates, logits, target = arrays
        codes = block_codes(self.module, before, hidden.astype(mx.float32))
        rows: mx.array = self.module.markov_w2.weight[candidates]
        logits = logits + (rows * codes[..., None, :]).sum(axis=-1)
        weights = mx.exp(-mx.arange(valid.shape[-1]) / self.recipe.gamma) * valid
        losses = mx.logsumexp(logits, axis=-1) - (mx.softmax(target, axis=-1) * logits).sum(axis=-1)
        hits = (mx.argmax(logits, axis=-1) == 0) & valid
        return (losses * weights).sum() / weights.sum(), mx.stack([hits.sum(axis=0), valid.sum(axis=0)])

    def measure(self) -> float:
        return self.replay.tokens_per_round(self.held_back)
