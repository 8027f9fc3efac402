"""What a row can go on from: copies of its keys and values, draft context and recurrent memory at one position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from .kv_pool import KVPool
from .recurrent_state import Recurrent, Saved


@dataclass(frozen=True)
class Snapshot:
    """The first tokens of a row: of each pool the keys and values [n, KV, D] by layer, and recurrent memory."""

    pools: list[tuple[list[mx.array], list[mx.array]]]
    memory: Saved | None

    @staticmethod
    def take(pools: Sequence[KVPool], start: int, count: int, recurrent: Recurrent | None, row: int) -> Snapshot:
        """Copy `count` tokens from slot `start` of every pool, and the memory of `row` right after them.

        The copies must be evaluated with the round that wrote the last of the tokens.
        """
        return Snapshot([pool.copy(start, count) for pool in pools], recurrent.save(row) if recurrent else None)

    def restore(self, pools: Sequence[KVPool], start: int, recurrent: Recurrent | None, row: int) -> None:
        """Let `row`, whose extent starts at slot `start`, go on after these tokens in the next round."""
        for pool, (keys, values) in zip(pools, self.pools, strict=True):
            pool.put(start, keys, values)
        if recurrent and self.memory:
            recurrent.load(row, self.memory)

    @property
    def arrays(self) -> list[mx.array]:
        copies = [array for keys, values in self.pools for array in keys + values]
        return copies + (self.memory.arrays if self.memory else [])
