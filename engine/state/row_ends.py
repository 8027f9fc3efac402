"""Where each row ends, as the device knows it, and how what a round emits moves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from ..schedule.scheduler import Segment


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

    def anchored(self, segments: Sequence[Segment]) -> mx.array:
        """Where the last token before those that these segments emit lies: positions [M]."""
        slots = mx.array([segment.slot for segment in segments])
        chunk = mx.array([segment.depth is None for segment in segments])
        # A chunk's cursor is the host's; a block's is on the device and moves with what is accepted.
        return mx.where(chunk, mx.array([segment.bound - 1 for segment in segments]), self.cursors[slots])

    def move(self, segments: Sequence[Segment], cursors: mx.array, emitted: mx.array, counts: mx.array) -> None:
        """The rows of these segments, which were at `cursors` [M], emit counts [M] of tokens [M, W] and end there."""
        slots = mx.array([segment.slot for segment in segments])
        drafting = mx.array([bool(segment.depth) for segment in segments])
        self.anchors[slots] = mx.take_along_axis(emitted, counts[:, None] - 1, axis=1)[:, 0]
        self.cursors[slots] = cursors + counts
        self.replay[slots] = mx.where(drafting, counts, 0)

    def put(self, ends: Sequence[End]) -> None:
        """Rows of which no round is in flight end there."""
        if ends:
            slots, *columns = (mx.array(column, mx.int32) for column in zip(*ends, strict=True))
            self.anchors[slots], self.cursors[slots], self.replay[slots] = columns
