"""How many drafted tokens of each row the next round verifies, as the scheduler asks it: fixed, or by a row budget."""

from __future__ import annotations

from collections.abc import Sequence

from ..drafting.suffix import Suffix
from ..request import Origin
from ..schedule.row import Row
from .budget import Budget
from .command_buffers import Bound
from .depth_choice import Candidate


class RowDepths:
    """The depths of an engine's rows, no deeper than requests, and command buffers where these are bounded, allow.

    Args:
        fixed: the depth of all rows while there is no `budget`.
        origin: of what the pair's draft writes.
        copying: whether rows may draft from their own text.
    """

    def __init__(self, fixed: int, origin: Origin, copying: bool):
        self.fixed, self._copying = fixed, copying
        self._origin: Origin = origin
        self.budget: Budget | None = None
        self.bound: Bound | None = None
        self._suffixes: dict[Row, Suffix] = {}

    def __call__(self, rows: Sequence[Row], prompt: int) -> list[int]:
        """For a round of these decoding rows, and `prompt` tokens of prompts; says in rows what their drafts are."""
        cut = self.bound.cut if self.bound else list
        if not self.budget:
            return cut([self.fixed if row.allows(self._origin) else 0 for row in rows])
        candidates = [
            Candidate(row.request.id, row.left, row.bound, self._match(row), row.allows(self._origin)) for row in rows
        ]
        depths = self.budget.depths(candidates, prompt, cut)
        for row, kind in zip(rows, self.budget.kinds, strict=True):
            row.kind = kind
        return depths

    def forget(self, row: Row) -> None:
        """The row is done, or what it drafts now will not be seen."""
        self._suffixes.pop(row, None)
        if self.budget:
            self.budget.forget(row.request.id)

    def _match(self, row: Row) -> int:
        """How many of a row's last tokens, as the host knows them, stand in its text before; 0 if it may not copy."""
        if not self._copying or not row.allows("lookup"):
            return 0
        if (suffix := self._suffixes.get(row)) is None:
            suffix = self._suffixes[row] = Suffix(row.request.tokens)
        suffix.extend(row.generated[len(suffix) - len(row.request.tokens) :])
        return suffix.match
