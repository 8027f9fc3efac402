"""What the target made of a round: logits, from which the tokens of its rows are chosen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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

    @property
    def watched(self) -> bool:
        """Whether the tokens of any row will be constrained as soon as a certain one has come."""
        return any(watch(segment) is not None for segment in self.segments)

    def accept(self, ends: RowEnds, end_tokens: Collection[int] = ()) -> tuple[mx.array, mx.array]:
        """What these segments emit: counts [M] of tokens [M, W]. Their rows then end there."""
        cursors = ends.anchored(self.segments)
        depths = [segment.depth or 0 for segment in self.segments]
        samplings = [segment.row.request.sampling for segment in self.segments]
        logits = without_ends(self.logits, self.segments, end_tokens) if self.watched else self.logits
        emitted, counts = accept(logits, self.drafts, depths, samplings, cursors + 1, self.operations)
        if self.watched:
            counts = up_to_watched(emitted, counts, self.segments)
        ends.move(self.segments, cursors, emitted, counts)
        return emitted, counts

    def split(self) -> tuple[Scored | None, Scored | None]:
        """The segments whose tokens are free, and those that choose them late; None if there are none."""
        if not any(segment.late for segment in self.segments):
            return self, None
        return self._only(False), self._only(True)

    def _only(self, late: bool) -> Scored | None:
        own: list[Segment] = []
        slots: list[int] = []
        drafts: list[int] = []
        slot = draft = 0
        for s in self.segments:
            depth = s.depth or 0
            if late == s.late:
                own.append(s)
                slots.extend(range(slot, slot + depth + 1))
                drafts.extend(range(draft, draft + depth))
            slot, draft = slot + depth + 1, draft + depth
        if len(own) in (0, len(self.segments)):
            return self if own else None
        some = self.drafts[mx.array(drafts)] if self.drafts is not None and drafts else None
        return Scored(own, self.logits[mx.array(slots)], some, self.operations)


def watch(segment: Segment) -> int | None:
    """The token of a free segment after which its row's next ones are constrained."""
    return segment.row.matcher.watch if segment.row.matcher else None


def without_ends(logits: mx.array, segments: Sequence[Segment], end_tokens: Collection[int]) -> mx.array:
    """Logits [S, vocabulary] of segments, those of end tokens at minus infinity where a row is watched."""
    watched = mx.array([watch(segment) is not None for segment in segments for _ in range((segment.depth or 0) + 1)])
    ends = (mx.arange(logits.shape[-1])[:, None] == mx.array(sorted(end_tokens), mx.int32)).any(axis=1)
    return mx.where(watched[:, None] & ends, -mx.inf, logits)


def up_to_watched(emitted: mx.array, counts: mx.array, segments: Sequence[Segment]) -> mx.array:
    """Counts [M] of tokens [M, W] such that none comes behind the first that is watched for."""
    tokens = [watch(segment) for segment in segments]
    found = emitted == mx.array([-1 if token is None else token for token in tokens])[:, None]
    first = mx.where(found.any(axis=1), mx.argmax(found, axis=1).astype(mx.int32) + 1, emitted.shape[1])
    return mx.minimum(counts, first)
