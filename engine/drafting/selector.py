"""DFlash 2's candidate selector: of the likeliest tokens of each mask slot, a chain in which each suits the one before.

Each slot's k likeliest tokens are its candidates. How well a candidate b suits the token a before it is a product of
the two tokens' codes, weighted by the slot's hidden state h: the sum of A[a] (W h) B[b]. It is added to the logit of b.
Then a chain is walked greedily from the anchor on: each slot takes the best candidate after the one taken before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import mlx.core as mx
import mlx.nn as nn

from ...kernels.choose.choose import Setting
from ...kernels.choose.noise import gumbel_of
from ..choose.change import best_changed
from ..choose.sampling import setting
from .dflash import Wanted


class Dense(nn.Module):
    """A linear layer that is never quantised: x [..., inputs] -> [..., outputs]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = mx.random.normal((outputs, inputs)) * inputs**-0.5

    def __call__(self, x: mx.array) -> mx.array:
        return x @ self.weight.T


class CandidateSelector(nn.Module):
    """Codes of `rank` numbers for each token as a predecessor and as a successor, and what weighs them."""

    def __init__(self, vocabulary: int, hidden: int, rank: int, candidates: int):
        super().__init__()
        self.candidates = candidates
        self.predecessor_codebook = mx.zeros((vocabulary, rank))
        self.successor_codebook = mx.zeros((vocabulary, rank))
        self.hidden_projection = Dense(hidden, rank)

    def __call__(self, wanted: Wanted) -> mx.array:
        """The drafts [F]. A sampled row adds the noise that its target will add to the candidates' scores.

        So draft and target mostly draw the same token, as `choose.verify.accept` says. Scores are float32, whatever the
        draft's type.
        """
        tokens, logits = best_changed(wanted.logits, wanted.positions, wanted.slots, self.candidates)
        places = rectangle(wanted.depths)
        settings = [setting(wanted.samplings[row[0]]) for row in places]
        grid = mx.array(places)
        tokens, logits, positions = (column[grid] for column in (tokens, logits, wanted.positions))
        scores = self.scores(tokens, logits, wanted.hidden[grid], wanted.anchors)
        chosen = walk(mx.argmax(drawn(scores, settings, tokens, positions, wanted.logits.shape[-1]), axis=-1))
        return ragged(mx.take_along_axis(tokens, chosen[..., None], axis=-1)[..., 0], wanted.depths)

    def scores(self, tokens: mx.array, logits: mx.array, hidden: mx.array, anchors: mx.array) -> mx.array:
        """Scores [M, D, k, k] of each candidate (last) after each of the slot before; k times the anchor before slot 0.

        Of candidates [M, D, k] with their logits, after anchors [M]; hidden states [M, D, hidden].
        """
        first = mx.broadcast_to(anchors[:, None, None], (len(anchors), 1, tokens.shape[2]))
        before = mx.concatenate([first, tokens[:, :-1]], axis=1)
        weights = self.hidden_projection(hidden).astype(mx.float32)[:, :, None]  # [M, D, 1, rank]
        predecessors = self.predecessor_codebook[before].astype(mx.float32) * weights
        successors = self.successor_codebook[tokens].astype(mx.float32)
        return logits[:, :, None] + predecessors @ successors.swapaxes(-1, -2)


def rectangle(depths: Sequence[int]) -> list[list[int]]:
    """Where each row's slots are among all: [M, D]. Those past its depth, which is 1 or more, repeat its last one."""
    begins = accumulate(depths, initial=0)
    return [
        [begin + min(j, depth - 1) for j in range(max(depths))] for begin, depth in zip(begins, depths, strict=False)
    ]


def ragged(drafts: mx.array, depths: Sequence[int]) -> mx.array:
    """Of drafts [M, D] of rows those that are wanted [F], row after row."""
    width = drafts.shape[1]
    return drafts.flatten()[mx.array([m * width + j for m, depth in enumerate(depths) for j in range(depth)])]


def drawn(
    scores: mx.array, settings: Sequence[Setting], tokens: mx.array, positions: mx.array, vocabulary: int
) -> mx.array:
    """Scores [M, D, k, k], of which the largest are draws where a row samples; greedy rows keep theirs."""
    if not any(one.inverse > 0 for one in settings):
        return scores
    rows, depth, count = tokens.shape
    inverse = mx.array([one.inverse for one in settings], mx.float32)[:, None, None, None]
    seeds = mx.repeat(mx.array([one.seed for one in settings], mx.uint32), depth)
    noise = gumbel_of(tokens.reshape(-1, count), seeds, positions.flatten(), vocabulary)
    # Where all are minus infinity, the difference of two is no number.
    top = mx.maximum(scores.max(axis=-1, keepdims=True), mx.finfo(mx.float32).min)
    scaled = truncated((scores - top) * inverse, settings)
    return mx.where(inverse > 0, scaled + noise.reshape(rows, depth, 1, count), scores)


def truncated(scores: mx.array, settings: Sequence[Setting]) -> mx.array:
    """Scores [M, D, k, k] of candidates, the largest of which is 0, without those that a row's sampling leaves out."""
    if all(one.top_p >= 1 and not one.top_k and not one.min_p for one in settings):
        return scores
    count = scores.shape[-1]
    top_p, bar = (
        mx.array(column, mx.float32)[:, None, None, None]
        for column in zip(*((one.top_p, one.bar) for one in settings), strict=True)
    )
    top_k = mx.array([one.top_k or count for one in settings])[:, None, None, None]
    ranked = mx.sort(scores, axis=-1)[..., ::-1]
    weights = mx.where((ranked >= bar) & (mx.arange(count) < top_k), mx.exp(ranked), 0)
    before = mx.cumsum(weights, axis=-1) - weights
    stay = (weights > 0) & ((before < top_p * weights.sum(axis=-1, keepdims=True)) | (top_p >= 1))
    lowest = mx.where(stay, ranked, mx.inf).min(axis=-1, keepdims=True)
    return mx.where(scores >= lowest, scores, -mx.inf)


def walk(best: mx.array) -> mx.array:
    """The candidates [M, D] of a chain, of the best ones [M, D, k] after each candidate of the slot before."""
    chain = [best[:, 0, :1]]
    for slot in range(1, best.shape[1]):
        chain.append(mx.take_along_axis(best[:, slot], chain[-1], axis=-1))
    return mx.concatenate(chain, axis=-1)
