"""What the engine asks of a draft, whichever kind it is: DFlash's, or the MTP head of the target itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx

from ..models.targets.transformer import Transformer
from ..request import Origin
from ..schedule.scheduler import PREFILL_TOKENS
from ..state.kv_pool import KVPool
from .context import WaitingContext
from .dflash import DFlashDraft
from .drafter import Drafter
from .mtp.drafter import MTPDrafter
from .mtp.entries import WaitingEntries
from .mtp.head import MTP
from .source import Source

ENTRIES = 4 * PREFILL_TOKENS
"""Most entries of an MTP head that wait: one pass takes them all."""

Draft = DFlashDraft | MTP


class ModelSource(Source, Protocol):
    """A draft bound to its target, with what it keeps of all rows in the same pages as the target's keys and values."""

    draft: Any
    target: Transformer
    block: int
    about: str
    origin: Origin
    pool: KVPool

    @property
    def tapped(self) -> Sequence[int]:
        """The layers of the target after which it needs the residual stream."""
        ...

    @property
    def extend(self) -> Callable[..., list[mx.array]]:
        """Write what `WaitingContext.take` gives; returns what to evaluate if nothing in the round drafts from it."""
        ...

    def renew(self) -> None:
        """Begin with empty pages, also after a round that failed."""
        ...


def drafter_for(draft: Draft, target: Transformer, pages: int, max_rows: int) -> ModelSource:
    """The draft bound to its target. Raises ModelError if it does not fit."""
    return MTPDrafter(draft, target, pages, max_rows) if isinstance(draft, MTP) else Drafter(draft, target, pages)


def context_for(draft: Draft | None, most: int) -> WaitingContext:
    """Where that of a draft waits which is not written yet, of so many tokens at most."""
    return WaitingEntries(most) if isinstance(draft, MTP) else WaitingContext(most)


def most_waiting(draft: Draft, target: Transformer, memory: int) -> int:
    """Of how many tokens so many bytes hold what waits."""
    if isinstance(draft, MTP):
        return min(ENTRIES, memory // (target.hidden_size * target.dtype.size))
    return memory // Drafter.bytes_of_taps(draft, target)
