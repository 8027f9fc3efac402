"""What a source of drafts does for the rows of a round, wherever its drafts come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx

from .drafter import DraftRow


class Source(Protocol):
    """Whatever it proposes, the text is the target's: a draft is kept only where the target chooses the same token."""

    def draft_blocks(self, rows: Sequence[DraftRow], anchors: mx.array, cursors: mx.array) -> mx.array:
        """Draft `depth` tokens for each row [F], row after row, from anchors and cursors [max_rows] on the device."""
        ...
