"""What a target's rows keep between rounds: keys and values, and in hybrid models the memory of recurrent layers."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from .kv_pool import KVPool
from .recurrent_state import Recurrent


@dataclass(frozen=True)
class State:
    """The pool of the attention layers, and the memory of the recurrent ones where there are any."""

    pool: KVPool
    recurrent: Recurrent | None = None

    def write(self, layer: int, slots: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """`KVPool.write`; layers are counted among the attention layers."""
        return self.pool.write(layer, slots, keys, values)

    def renew(self) -> None:
        """Keep nothing of any row, as at the start."""
        self.pool.renew()
        if self.recurrent:
            self.recurrent.renew()
