"""The MTP head as a draft in packed rounds: entries of all rows in one pass, then one more token of a row in each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import mlx.core as mx

from ....kernels.packing import Packing, Span
from ...choose.change import Slot, choose_changed
from ...models.targets.transformer import Transformer
from ...request import Origin
from ..drafter import DraftRow
from .head import MTP


class MTPDrafter:
    """A head bound to its target, with the entries of all rows, and what the first draft of each is made of.

    Keys and values of entries lie in the same pages as the target's, the entry of position p at p. They follow the same
    rule: what a round writes at the cursor and past it is invisible, and is overwritten.

    The last entry of a prefix that rows share has the token that came next in the row that was read first. It is
    another one only where prompts part exactly at the end of a page. That may cost an accepted draft.
    """

    origin: Origin = "mtp"

    def __init__(self, mtp: MTP, target: Transformer, pages: int, max_rows: int):
        mtp.operations = target.operations
        self.draft, self.target = mtp, target
        self.tapped = ()
        self.block = mtp.block
        self.about = f"MTP head, blocks of {self.block}"
        self.state = mtp.make_state(pages)
        self.pool = self.state.pool
        self.begins = mx.zeros((max_rows, mtp.hidden_size), mtp.dtype)
        """What the entry before each row's anchor returned [max_rows, hidden]: of this comes its first draft."""

    def renew(self) -> None:
        """Begin with empty pages, also after a round that failed."""
        self.state.renew()
        self.begins = mx.zeros_like(self.begins)

    def extend(self, hidden: mx.array, tokens: mx.array, packing: Packing, counts: mx.array) -> list[mx.array]:
        """Write entries, with the target's hidden states [N, hidden] and the tokens [N] behind them.

        A span's row is its slot. Of its entries only the first counts [spans] are of committed tokens, at least one;
        the last of these precedes the row's anchor, as long as nothing else is committed.

        Returns what to evaluate with the round if nothing in it drafts from these entries.
        """
        ahead = self.draft.predict(hidden, tokens, packing, self.state)
        slots, firsts = (mx.array(column) for column in zip(*((s.row, s.query) for s in packing.spans), strict=True))
        self.begins[slots] = ahead[firsts + counts - 1]
        return [*self.pool.written, self.begins]

    def draft_blocks(self, rows: Sequence[DraftRow], anchors: mx.array, cursors: mx.array) -> mx.array:
        """Draft `depth` tokens for each row [F], row after row, from cursors [max_rows] on the device.

        A row's anchor is in its last entry already. Every draft is chosen as the target chooses that position's token,
        with the same random numbers (see `verify`).
        """
        order = sorted(range(len(rows)), key=lambda i: rows[i].depth, reverse=True)
        rows = [rows[i] for i in order]
        slots = mx.array([row.slot for row in rows])
        ahead, cursor = self.begins[slots], cursors[slots]
        counts = [sum(row.depth > step for row in rows) for step in range(rows[0].depth)]
        drafts: list[mx.array] = []
        for step, count in enumerate(counts):
            if step:
                ahead = self._onward(rows[:count], ahead[:count], drafts[-1][:count], cursor[:count], step)
            logits = self.target.head(ahead[:count].astype(self.target.dtype))
            drafts.append(self._choose(rows[:count], logits, cursor[:count] + step + 1))
        begins = list(accumulate(counts, initial=0))
        ranks = {i: rank for rank, i in enumerate(order)}
        places = [begins[step] + ranks[i] for i in range(len(rows)) for step in range(rows[ranks[i]].depth)]
        return mx.concatenate(drafts)[mx.array(places)]

    def _onward(
        self, rows: Sequence[DraftRow], ahead: mx.array, drafts: mx.array, cursor: mx.array, step: int
    ) -> mx.array:
        """What the head returns [M, hidden] for one more entry of each row, `step` behind the one before its anchor."""
        spans = [Span(i, 1, row.pages, row.bound + step, row.exact) for i, row in enumerate(rows)]
        return self.draft.predict(ahead, drafts, Packing.of(spans, cursor + step - 1), self.state)

    def _choose(self, rows: Sequence[DraftRow], logits: mx.array, positions: mx.array) -> mx.array:
        """The rows' drafts [M] for these positions. What earlier drafts add to a row's history is left out."""
        samplings = [row.request.sampling for row in rows]
        slots = [Slot(row.change) for row in rows] if any(row.change for row in rows) else ()
        return choose_changed(logits, samplings, positions, slots, None, self.target.operations)
