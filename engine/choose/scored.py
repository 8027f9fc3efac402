"""What the target made of a round: logits, from which the tokens of its rows are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from ...kernels.operations import Operations
from ..schedule.row import Watch
from ..schedule.scheduler import Segment
from ..state.row_ends import RowEnds
from .change import Change, Slot
from .history import Histories
from .logprobs import Logprobs, logprobs
from .verify import accept


@dataclass(frozen=True)
class Accepted:
    """What segments emit, on the device: [M, 1 + W], of each a count, and tokens of which so many are valid; the
    log-probabilities of those that ask for them, at all of their slots.

    Counts and tokens are one array, because MLX on CUDA takes a while for each that the host reads.
    """

    emitted: mx.array = field(default_factory=lambda: mx.zeros((0,), mx.int32))
    logprobs: Logprobs | None = None

    @property
    def arrays(self) -> list[mx.array]:
        return [self.emitted, *(self.logprobs.arrays if self.logprobs else [])]


@dataclass(frozen=True)
class Scored:
    """Segments that yield, with the logits [S, vocabulary] of their slots (depth + 1 of each) and their drafts [F], and
    what their rows change in these logits.
    """

    segments: list[Segment]
    logits: mx.array
    drafts: mx.array | None
    operations: Operations
    changes: Sequence[Change | None]

    @property
    def arrays(self) -> list[mx.array]:
        return [self.logits] if self.drafts is None else [self.logits, self.drafts]

    @property
    def slots(self) -> list[Slot]:
        """What changes the logits of each slot."""
        slots: list[Slot] = []
        draft = 0
        for segment, change in zip(self.segments, self.changes, strict=True):
            depth, mask = segment.depth or 0, watched.mask if (watched := watch(segment)) else None
            slots += [Slot(change, range(draft, draft + j) if change else range(0), mask) for j in range(depth + 1)]
            draft += depth
        return slots

    @property
    def watched(self) -> bool:
        """Whether the tokens of any row will be constrained as soon as a certain one has come."""
        return any(watch(segment) for segment in self.segments)

    def accept(self, ends: RowEnds, histories: Histories) -> Accepted:
        """What these segments emit. Their rows then end there."""
        cursors = ends.anchored(self.segments)
        depths = [segment.depth or 0 for segment in self.segments]
        samplings = [segment.row.request.sampling for segment in self.segments]
        slots = self.slots if any(self.changes) or self.watched else ()
        tokens, counts = accept(self.logits, self.drafts, depths, samplings, cursors + 1, self.operations, slots)
        if self.watched:
            counts = up_to_watched(tokens, counts, self.segments)
        ends.move(self.segments, cursors, tokens, counts)
        histories.move(self.segments, tokens, counts)
        return Accepted(mx.concatenate([counts[:, None], tokens], axis=1), self._logprobs(tokens))

    def _logprobs(self, tokens: mx.array) -> Logprobs | None:
        """Of tokens [M, W] at all slots of segments that ask for them; None if none does."""
        places: list[tuple[int, int, int]] = []  # slot, segment, and where it is among the segment's
        most, slot = 0, 0
        for m, segment in enumerate(self.segments):
            count = (segment.depth or 0) + 1
            if (asked := segment.row.request.sampling.logprobs) is not None:
                places += [(slot + j, m, j) for j in range(count)]
                most = max(most, asked)
            slot += count
        if not places:
            return None
        slots, *at = zip(*places, strict=True)
        rows, columns = (mx.array(column) for column in at)
        return logprobs(self.logits, list(slots), tokens[rows, columns], most)

    def split(self) -> tuple[Scored | None, Scored | None]:
        """The segments whose tokens are free, and those that choose them late; None if there are none."""
        if not any(segment.late for segment in self.segments):
            return self, None
        return self._only(False), self._only(True)

    def _only(self, late: bool) -> Scored | None:
        own: list[Segment] = []
        changes: list[Change | None] = []
        slots: list[int] = []
        drafts: list[int] = []
        slot = draft = 0
        for s, change in zip(self.segments, self.changes, strict=True):
            depth = s.depth or 0
            if late == s.late:
                own.append(s)
                changes.append(change)
                slots.extend(range(slot, slot + depth + 1))
                drafts.extend(range(draft, draft + depth))
            slot, draft = slot + depth + 1, draft + depth
        if len(own) in (0, len(self.segments)):
            return self if own else None
        some = self.drafts[mx.array(drafts)] if self.drafts is not None and drafts else None
        return Scored(own, self.logits[mx.array(slots)], some, self.operations, changes)


def watch(segment: Segment) -> Watch | None:
    """What is watched for in a free segment."""
    return segment.row.matcher.watch if segment.row.matcher else None


def up_to_watched(emitted: mx.array, counts: mx.array, segments: Sequence[Segment]) -> mx.array:
    """Counts [M] of tokens [M, W] such that none comes behind the first that is watched for."""
    tokens = [watched.token if (watched := watch(segment)) else -1 for segment in segments]
    found = emitted == mx.array(tokens)[:, None]
    first = mx.where(found.any(axis=1), mx.argmax(found, axis=1).astype(mx.int32) + 1, emitted.shape[1])
    return mx.minimum(counts, first)
