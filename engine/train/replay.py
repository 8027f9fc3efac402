"""Tokens per round of a draft on known greedy responses: the walk that decoding would take, without decoding."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..drafting.dflash import DFlashDraft
from ..models.targets.transformer import Transformer
from .batches import WIDTHS, pad
from .blocks import block_labels, block_logits, compiled, matches, target_taps
from .responses import Transcript

ANCHORS = 32
"""Blocks of each sequence drafted together."""


class Replay:
    """Measures drafts over one target. Every position of a response is drafted from; then rounds are counted.

    Exact for a greedy target: after n right tokens the next anchor is the target's own token, n + 1 further on.
    """

    def __init__(self, target: Transformer, draft: DFlashDraft, batch_tokens: int):
        self.batch_tokens = batch_tokens
        block, taps = draft.config.block_size, draft.config.target_layer_ids

        def right(hidden: mx.array, tokens: mx.array, lengths: mx.array, anchors: mx.array) -> mx.array:
            logits = block_logits(target, draft, hidden, tokens, anchors)
            return matches(logits, *block_labels(tokens, lengths, anchors, block))

        self._taps = compiled(lambda tokens: target_taps(target, tokens, taps))
        self._right = compiled(right, inputs=[draft.state])

    def tokens_per_round(self, sequences: Sequence[Transcript]) -> float:
        """Mean over all rounds of all sequences; the first token of a response comes with its prompt."""
        ordered = sorted(sequences, key=lambda sequence: len(sequence.tokens))
        tokens = rounds = 0
        while ordered:
            longest = len(ordered[-1].tokens)
            width = next((width for width in WIDTHS if width >= longest), longest)
            size = max(1, self.batch_tokens // width)
            group, ordered = ordered[-size:], ordered[:-size]
            for sequence, right in zip(group, self._accepted(group, width), strict=True):
                anchor, end = sequence.prompt, len(sequence.tokens) - 1
                tokens += end - anchor
                while anchor < end:
                    anchor += int(right[anchor - sequence.prompt]) + 1
                    rounds += 1
        return tokens / max(rounds, 1)

    def _accepted(self, group: Sequence[Transcript], width: int) -> np.ndarray:
        """Leading right slots of the block at every position of each response, [B, longest response]."""
        tokens, lengths = (mx.array(each) for each in pad(group, width))
        starts = np.array([sequence.prompt for sequence in group])
        taps = self._taps(tokens)
        passes = []
        for first in range(0, max(len(each.tokens) - each.prompt for each in group), ANCHORS):
            anchors = np.minimum(starts[:, None] + first + np.arange(ANCHORS), width - 1).astype(np.int32)
            passes.append(np.array(self._right(taps, tokens, lengths, mx.array(anchors))))
        return np.concatenate(passes, axis=1)
