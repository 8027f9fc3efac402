"""What a target's rows keep between rounds: keys and values, and in hybrid models the memory of the other layers."""

from __future__ import annotations

from dataclasses import dataclass

from ...kernels.packing import Packing
from .kv_pool import KVPool
from .row_memory import RowMemory


@dataclass(frozen=True)
class State:
    """The pool of the attention layers, and the memory of the other ones where there are any."""

    pool: KVPool
    recurrent: RowMemory | None = None

    def begin(self, packing: Packing) -> None:
        """A round of these packed tokens begins."""
        if self.recurrent:
            self.recurrent.begin(packing)

    def renew(self) -> None:
        """Keep nothing of any row, as at the start."""
        self.pool.renew()
        if self.recurrent:
            self.recurrent.renew()
