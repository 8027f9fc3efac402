"""Which sequences and which anchors a step sees: a function of the seed and the step alone, so runs can resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .prompts import TrainingError
from .recipe import Recipe
from .responses import Transcript

WIDTHS = (128, 192, 256, 320, 384, 448, 512)
"""Sequences are padded to the next of these (or to the recipe's `longest`), so that few shapes are compiled."""


@dataclass(frozen=True)
class Minibatch:
    """Padded `tokens` [B, S], whole `lengths` [B], and positions `anchors` [B, A] inside the responses."""

    tokens: np.ndarray
    lengths: np.ndarray
    anchors: np.ndarray


def usable(sequences: Sequence[Transcript], longest: int) -> list[Transcript]:
    """The sequences cut to `longest`, without those whose response is then shorter than two tokens."""
    cut = [Transcript(each.index, each.prompt, each.tokens[:longest]) for each in sequences]
    return [each for each in cut if len(each.tokens) - each.prompt >= 2]


def split(sequences: Sequence[Transcript], held_back: int, seed: int) -> tuple[list[Transcript], list[Transcript]]:
    """Sequences to train on, and those held back: at most a tenth of all."""
    order = np.random.default_rng([seed, 0]).permutation(len(sequences))
    count = min(held_back, len(sequences) // 10)
    if count == 0:
        raise TrainingError(f"{len(sequences)} usable responses are too few to train on; give more prompts")
    return [sequences[i] for i in order[count:]], [sequences[i] for i in order[:count]]


def pad(sequences: Sequence[Transcript], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, width], zero after the end, and lengths [B]."""
    tokens = np.zeros((len(sequences), width), np.int32)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence.tokens)] = sequence.tokens
    return tokens, np.array([len(sequence.tokens) for sequence in sequences], np.int32)


class Minibatches:
    """The batch of every step. An epoch visits each sequence about once, in batches of one width each."""

    def __init__(self, sequences: Sequence[Transcript], recipe: Recipe):
        self.recipe = recipe
        widths = sorted({width for width in WIDTHS if width < recipe.longest} | {recipe.longest})
        self.buckets: dict[int, list[Transcript]] = {width: [] for width in widths}
        for sequence in sequences:
            self.buckets[next(width for width in widths if len(sequence.tokens) <= width)].append(sequence)
        self.epoch_steps = len(self._epoch(0))
        self._planned: tuple[int, list[tuple[int, np.ndarray]]] = (-1, [])

    def batch(self, step: int) -> Minibatch:
        epoch, place = divmod(step, self.epoch_steps)
        if self._planned[0] != epoch:
            self._planned = (epoch, self._epoch(epoch))
        width, members = self._planned[1][place]
        chosen = [self.buckets[width][member] for member in members]
        tokens, lengths = pad(chosen, width)
        prompts = np.array([sequence.prompt for sequence in chosen])
        return Minibatch(tokens, lengths, self._anchors(step, prompts, lengths))

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        random = np.random.default_rng([self.recipe.seed, 1, epoch])
        plan: list[tuple[int, np.ndarray]] = []
        for width, sequences in self.buckets.items():
            if not sequences:
                continue
            size = max(1, self.recipe.batch_tokens // width)
            count = -(-len(sequences) // size)
            order = np.resize(random.permutation(len(sequences)), count * size)
            plan += [(width, members) for members in order.reshape(count, size)]
        return [plan[place] for place in random.permutation(len(plan))]

    def _anchors(self, step: int, prompts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return spread(prompts, lengths, self.recipe.anchors, np.random.default_rng([self.recipe.seed, 2, step]))


def spread(prompts: np.ndarray, lengths: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Anchors [B, count]: one drawn in each of equal stretches of the response; the last token is none."""
    at = (np.arange(count) + random.random((len(prompts), count))) / count
    return (prompts[:, None] + at * (lengths - 1 - prompts)[:, None]).astype(np.int32)
