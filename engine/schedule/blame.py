"""Whose fault a failed round is: nobody's at first, then each of its rows shows alone whether it is to blame."""

from __future__ import annotations

from collections.abc import Sequence

from ..request import EngineFailed
from .row import Row


def blame(rows: Sequence[Row], reason: str) -> Row | None:
    """Note that a round of these rows failed, in an engine that runs without them; returns the row that is to blame.

    What fails once may have been an accident: all try again. Rows with which rounds fail again are suspects and run
    alone until each has come further than before (`Row.suspect`). One that fails alone is to blame.

    Raises:
        EngineFailed: rounds of these rows fail though each of them runs alone, or fail without any row.
    """
    for row in rows:
        row.note_failure()
    worst = max((row.failures for row in rows), default=0)
    if not rows:
        raise EngineFailed(f"rounds fail before any request takes part: {reason}")
    if worst > 1 and len(rows) == 1:
        return rows[0]
    if worst > 2:
        raise EngineFailed(f"rounds of {len(rows)} requests fail, of one they do not: lower --max-rows ({reason})")
    return None
