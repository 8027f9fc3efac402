"""What the target made of a round: logits, from which the tokens of its rows are chosen."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ...kernels.operations import Operations
from ..schedule.scheduler import Segment
from ..state.row_ends import RowEnds
from .verify import accept


@dataclass(frozen=True)
class Scored:
    """Segments that yield, with the logits [S, vocabulary] of their slots (depth + 1 of each) and their drafts [F]."""

    segments: list[Segment]
    logits: mx.array
    drafts: mx.array | None
    operations: Operations

    @property
    def arrays(self) -> list[mx.array]:
        return [self.logits] if self.drafts is None else [self.logits, self.drafts]

    def accept(self, ends: RowEnds) -> tuple[mx.array, mx.array]:
        """What these segments emit: counts [M] of tokens [M, W]. Their rows then end there."""
        cursors = ends.anchored(self.segments)
        depths = [segment.depth or 0 for segment in self.segments]
        samplings = [segment.row.request.sampling for segment in self.segments]
        emitted, counts = accept(self.logits, self.drafts, depths, samplings, cursors + 1, self.operations)
        ends.move(self.segments, cursors, emitted, counts)
        return emitted, counts

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
        return Scored(own, self.logits[mx.array(slots)], some, self.operations)
