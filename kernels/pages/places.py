"""Where tokens lie in a pool: every row has pages, and a table says which."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx

from ..gpu.launch import CONSTANT_SIZE
from .sizes import PAGE


@dataclass(frozen=True)
class Places:
    """Where N tokens lie: `positions` [N] int32 in their rows, whose pages begin at `starts` [N] int32 of `table`.

    Page i of a pool is its slots from i * PAGE on; a row's position p has the slot p % PAGE of the page
    `table[start + p // PAGE]`.
    """

    table: mx.array
    starts: mx.array
    positions: mx.array

    @cached_property
    def arrays(self) -> list[mx.array]:
        """Table, starts and positions for kernels; MLX keeps arrays of less than 8 elements elsewhere."""
        lacking = max(0, CONSTANT_SIZE - self.positions.size)
        padded = [mx.pad(array, (0, lacking)) if lacking else array for array in (self.starts, self.positions)]
        return [self.table, *padded]

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
    flat.extend([0] * (CONSTANT_SIZE - len(flat)))
    held: Any = memoryview(flat)
    return mx.array(held).astype(mx.int32), starts  # a conversion: the device has written it itself
