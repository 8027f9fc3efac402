"""Where each row ends, as the device knows it, and how what a round emits moves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from ..choose.verify import accept
from ..schedule.scheduler import Segment


@dataclass(frozen=True)
class Scored:
    """Segments that yield, with the logits [S, vocabulary] of their slots (depth + 1 of each) and their drafts [F]."""

    segments: list[Segment]
    logits: mx.array
    drafts: mx.array | None

    @property
    def arrays(self) -> list[mx.array]:
        return [self.logits] if self.drafts is None else [self.logits, self.drafts]

    def split(self) -> tuple[Scored | None, Scored | None]:
        """The segments whose rows are free, and those whose rows have a grammar; None if there are none."""
        if all(segment.row.matcher is None for segment in self.segments):
            return self, None
        return self._only(False), self._only(True)

    def _only(self, constrained: bool) -> Scored | None:
        own: list[Segment] = []
        slots: list[int] = []
        drafts: list[int] = []
        slot = draft = 0
        for s in self.segments:
            depth = s.depth or 0
            if constrained == (s.row.matcher is not None):
                own.append(s)
                slots.extend(range(slot, slot + depth + 1))
                drafts.extend(range(draft, draft + depth))
            slot, draft = slot + depth + 1, draft + depth
        if len(own) in (0, len(self.segments)):
            return self if own else None
        some = self.drafts[mx.array(drafts)] if self.drafts is not None and drafts else None
        return Scored(own, self.logits[mx.array(slots)], some)


class End(NamedTuple):
    """The end of the row in a slot: its last token, that token's position, steps of its tape that were accepted."""

    slot: int
    anchor: int
    cursor: int
    replay: int


class RowEnds:
    """The ends of all rows [max_rows], by slot. A row's anchor is its last token, of which nothing is computed yet;
    its cursor is the anchor's position; of its last tape so many steps are to be replayed.
    """

    def __init__(self, max_rows: int):
        self.anchors = mx.zeros(max_rows, mx.int32)
        self.cursors = mx.zeros(max_rows, mx.int32)
        self.replay = mx.zeros(max_rows, mx.int32)

    @property
    def arrays(self) -> list[mx.array]:
        return [self.anchors, self.cursors, self.replay]

    def move(self, scored: Scored) -> tuple[mx.array, mx.array]:
        """What these segments emit: counts [M] of tokens [M, W]. Their rows then end there."""
        segments = scored.segments
        depths = [segment.depth or 0 for segment in segments]
        slots = mx.array([segment.slot for segment in segments])
        chunk = mx.array([segment.depth is None for segment in segments])
        # A chunk's cursor is the host's; a block's is on the device and moves with what is accepted.
        cursors = mx.where(chunk, mx.array([segment.bound - 1 for segment in segments]), self.cursors[slots])
        samplings = [segment.row.request.sampling for segment in segments]
        emitted, counts = accept(scored.logits, scored.drafts, depths, samplings, cursors + 1)
        last = mx.take_along_axis(emitted, counts[:, None] - 1, axis=1)[:, 0]
        self.anchors[slots] = last
        self.cursors[slots] = cursors + counts
        self.replay[slots] = mx.where(mx.array([depth > 0 for depth in depths]), counts, 0)
        return emitted, counts

    def put(self, ends: Sequence[End]) -> None:
        """Rows of which no round is in flight end there."""
        if ends:
            slots, *columns = (mx.array(column, mx.int32) for column in zip(*ends, strict=True))
            self.anchors[slots], self.cursors[slots], self.replay[slots] = columns
