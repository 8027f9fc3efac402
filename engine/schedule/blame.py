"""Whose fault a failed round is: nobody's at first, then each of its rows shows alone whether it is to blame."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..request import DeviceFailed, EngineFailed
from .row import Row

MOST_BLAMED = 8
"""Requests that may be to blame one after the other, while none ends well: more of them, and it is the engine. A sick
machine must not fail all lines of a dataset that others could run.
"""


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


GAVE_UP = "[METAL] Command buffer execution failed"
"""How MLX begins what it says of a command buffer that macOS did not let end: it took too long, or memory is short."""


def gave_up(said: str) -> str | None:
    """Why the GPU gave up a command buffer, if that is what was said: macOS's words, such as "Impacting Interactivity
    (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)".
    """
    _, found, why = said.partition(GAVE_UP)
    return re.split("[;\n]", why)[0].strip(" :.") or "no reason given" if found else None


def check_device(error: Exception) -> None:
    """Raises DeviceFailed if that is what an error means. No request is to blame: a smaller round might have run."""
    if why := gave_up(str(error)):
        raise DeviceFailed(f"the GPU gave up: {GAVE_UP}: {why}") from None
