"""Drafting for all rows of a round at once: the draft model over its own pool, whose pages are the target's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ...kernels.attention.manner import Manner
from ...kernels.fused.rotary import Norms
from ...kernels.packing import Packing, Span
from ...kernels.pages.places import Places
from ..choose.change import Change, Slot
from ..models.folder import ModelError
from ..models.targets.transformer import Transformer
from ..request import Origin, Request
from ..state.kv_pool import KVPool
from .dflash import DFlashDraft, Wanted


@dataclass(frozen=True)
class DraftRow:
    """One row to draft for: the place of its anchor and cursor, its pages, the host's bound of its cursor, and what it
    changes in logits.
    """

    request: Request
    slot: int
    pages: Sequence[int]
    bound: int
    exact: bool
    depth: int
    change: Change | None = None


class Drafter:
    """A draft bound to a target, whose embedding and head it uses, with the context of all rows.

    A draft's context keys and values lie in the same pages as the target's. They follow the same rule: what a round
    writes past the cursor is invisible and is overwritten. The block's own keys and values are written there too, for
    as long as the block is drafted.

    Raises:
        ModelError: the draft does not fit the target.
    """

    origin: Origin = "dflash"

    def __init__(self, draft: DFlashDraft, target: Transformer, pages: int):
        check_fit(draft, target)
        draft.join()
        self.draft, self.target = draft, target
        self.tapped = draft.config.target_layer_ids
        self.block = draft.block
        self.about = f"blocks of {self.block}"
        self.pool = KVPool(draft.heads, pages, draft.dtype, target.operations)
        scales = [layer.self_attn.scale for layer in draft.layers]
        self.manners = [Manner(scale, draft.window(index)) for index, scale in enumerate(scales)]

    @staticmethod
    def bytes_of_taps(draft: DFlashDraft, target: Transformer) -> int:
        """Memory of one token's taps."""
        return len(draft.config.target_layer_ids) * target.hidden_size * target.dtype.size

    def renew(self) -> None:
        """Begin with empty pages, also after a round that failed."""
        self.pool.renew()

    def draft_blocks(self, rows: Sequence[DraftRow], anchors: mx.array, cursors: mx.array) -> mx.array:
        """Draft `depth` tokens for each row [F], row after row, from anchors and cursors [max_rows] on the device."""
        return self.draft.choose(self.score(rows, anchors, cursors), self.target.operations)

    def score(self, rows: Sequence[DraftRow], anchors: mx.array, cursors: mx.array) -> Wanted:
        """Logits of the tokens to draft, and what else chooses them."""
        block, first, count = self.draft.config.block_size, self.draft.first, len(rows)
        places = mx.array([row.slot for row in rows])
        mask = mx.full((count, block - 1), self.draft.config.mask_token_id, mx.int32)
        tokens = mx.concatenate([anchors[places][:, None], mask], axis=1).flatten()
        cursor = cursors[places][:, None]
        positions = (cursor + mx.arange(block)).flatten()
        spans = [Span(i * block, block, row.pages, row.bound + block, row.exact) for i, row in enumerate(rows)]
        causal = Packing.of(spans, positions)
        packings = {True: causal, False: causal.limited(mx.repeat(cursor.flatten() + block - 1, block))}
        operations, layout = self.target.operations, self.draft.layout

        def attend(layer: int, projected: mx.array, turns: mx.array, norms: Norms) -> mx.array:
            pool, packing = self.pool[layer], packings[self.draft.causal(layer)]
            queries = operations.rotate(projected, turns, norms, layout, pool, packing.places)
            return operations.attention(queries, pool, packing, self.manners[layer])

        hidden = self.draft(self.draft.embed(tokens, self.target), positions, attend, operations)
        wanted = mx.array([i * block + first + j for i, row in enumerate(rows) for j in range(row.depth)])
        hidden = hidden[wanted]
        logits = self.draft.score(hidden, self.target)
        samplings = [row.request.sampling for row in rows for _ in range(row.depth)]
        # The target's changes, too, but for what earlier drafts of the block add to the history.
        slots = [Slot(row.change) for row in rows for _ in range(row.depth)] if any(row.change for row in rows) else ()
        depths = [row.depth for row in rows]
        return Wanted(hidden, logits, positions[wanted] + (1 - first), samplings, slots, depths, anchors[places])

    def extend(self, taps: mx.array, places: Places) -> list[mx.array]:
        """Write the context of tokens at these places, with taps [N, taps * hidden].

        Returns what to evaluate with the round if nothing in it drafts from this context.
        """
        context = self.draft.context(taps.astype(self.draft.dtype), places.positions, self.target.operations)
        for layer, (keys, values) in zip(self.pool.layers, context, strict=True):
            layer.write(places, keys, values)
        return self.pool.written


def check_fit(draft: DFlashDraft, target: Transformer) -> None:
    """Check that a draft belongs to a target. Raises ModelError with the reason."""
    config = draft.config
    checks = [
        (config.hidden_size == target.hidden_size, f"hidden size {config.hidden_size}, target {target.hidden_size}"),
        (config.vocab_size == target.vocabulary, f"vocabulary {config.vocab_size:,}, target {target.vocabulary:,}"),
        (
            config.num_target_layers in (0, len(target.layers)),
            f"made for {config.num_target_layers} target layers, target has {len(target.layers)}",
        ),
        (
            all(0 <= tap < len(target.layers) for tap in config.target_layer_ids),
            f"taps {config.target_layer_ids}, target has {len(target.layers)} layers",
        ),
        (
            0 <= config.mask_token_id < target.vocabulary,
            f"mask token {config.mask_token_id:,}, vocabulary {target.vocabulary:,}",
        ),
    ]
    for fits, reason in checks:
        if not fits:
            raise ModelError(f"the draft does not fit the target: {reason}; name the draft made for this target")
