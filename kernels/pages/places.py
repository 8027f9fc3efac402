"""Where tokens lie in a pool: every row has pages, and a table says which."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx

from .sizes import PAGE

@dataclass(frozen=True)
class Places:
    """Where N tokens lie: `positions` [N] int32 in their rows, whose pages begin at `starts` [N] int32 of `table`.

    Slot i of a pool belongs to page i // PAGE; a row's position p has slot `table[start + p // PAGE] * PAGE + p % PAGE`.
    """

    table: mx.array
    starts: mx.array
    positions: mx.array

    @cached_property
    def slots(self) -> mx.array:
        """The slot of each token [N]."""
        return self.table[self.starts + self.positions // PAGE] * PAGE + self.positions % PAGE


def tabled(rows: Sequence[Sequence[int]]) -> tuple[mx.array, list[int]]:
    """The pages of some rows as one table [8 or more] int32, and where each row's begin in it."""
    flat, starts = array("q"), list[int]()
    for pages in rows:
        starts.append(len(flat))
        flat.extend(pages)
    # MLX keeps smaller arrays in a memory of their own. The conversion lets the device write what its kernels read.
    flat.extend([0] * (8 - len(flat)))
    return mx.array(memoryview(flat)).astype(mx.int32), starts
