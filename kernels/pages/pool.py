"""The keys and values of one attention layer: a pool of pages, written in place on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..gpu.launch import CONSTANT_SIZE, numbers, on_device
from ..gpu.source import Launch, Memory, read_kernels
from .places import Places, tabled
from .sizes import PAGE, pages_for

SOURCE = Path(__file__).with_name("pages.metal")
STORE, GATHER = (read_kernels(SOURCE)[name] for name in ("store", "gather"))
THREADS = 256

WORD = mx.uint64
"""What a pool that kernels write is made of: they move whole words, whatever the type of keys and values."""


@dataclass(frozen=True)
class Rows:
    """Some rows: the `pages` of each, as the host knows them, where these begin in the table, and how many positions
    each row has.
    """

    table: mx.array
    firsts: tuple[int, ...]
    pages: tuple[Sequence[int], ...]
    lengths: tuple[int, ...]

    @staticmethod
    def of(pages: Sequence[Sequence[int]], lengths: Sequence[int]) -> Rows:
        """Rows with these pages and so many positions."""
        table, firsts = tabled(pages)
        return Rows(table, tuple(firsts), tuple(pages), tuple(lengths))


class LayerPool:
    """Keys and values of `heads` of `dim` in so many pages.

    With a `launch`, our own kernels write into the pool's memory, which no operation of MLX ever has as an output: on
    Metal, MLX copies an output's memory as long as anything in flight still has to read it. Whatever reads the pool or
    writes to it takes `after`, which the last write has made, as an input. Without a `launch`, MLX scatters: in place
    if nothing else holds the arrays when the write is evaluated.
    """

    def __init__(self, pages: int, heads: int, dim: int, dtype: mx.Dtype, launch: Launch | None = None):
        self.heads, self.dim, self.dtype = heads, dim, dtype
        self.launch = launch
        self._begin(pages)

    def renew(self, pages: int | None = None) -> None:
        """Begin anew with empty pages, so many or as many as before."""
        self._begin(self.pages if pages is None else pages)

    def _begin(self, pages: int) -> None:
        self.after = mx.zeros(CONSTANT_SIZE)
        self._keys = self._values = self.after  # gives the old ones back before new ones take their memory
        self._hand_over([])
        self._keys, self._values = (self._zeros(pages) for _ in range(2))
        mx.eval(self.after, self._keys, self._values)
        self._hand_over(self.arrays)

    def _hand_over(self, arrays: Sequence[mx.array]) -> None:
        """From now on these are the `memory` of kernels; MLX's own operations must be alone in holding them."""
        self.memory = [Memory.of(array, PAGE) for array in arrays] if self.launch else []

    @property
    def pages(self) -> int:
        return self._keys.shape[0] // PAGE

    @property
    def arrays(self) -> list[mx.array]:
        """Keys and values; if kernels write them, as words. They take them as `memory`."""
        return [self._keys, self._values]

    @property
    def keys(self) -> mx.array:
        """Keys [slots, KV, D], once all writes launched so far have run."""
        mx.eval(self.written)
        return self._keys.view(self.dtype)

    @property
    def values(self) -> mx.array:
        """Values [slots, KV, D], likewise."""
        mx.eval(self.written)
        return self._values.view(self.dtype)

    @property
    def written(self) -> mx.array:
        """Depends on all that was written so far. Without a `launch` it is an element of each array: naming the
        arrays themselves would hold them, and the next write would have to copy them.
        """
        return self.after if self.launch else mx.stack([pool[0, 0, 0] for pool in self.arrays])

    def write(self, places: Places, keys: mx.array, values: mx.array) -> None:
        """Write keys and values [N, KV, D] of tokens at these places."""
        if self.launch is None:
            self._keys[places.slots] = keys
            self._values[places.slots] = values
            return
        new = [array.view(WORD) for array in (keys, values)]
        units = new[0].size
        inputs = [*self.memory, *new, *places.arrays]
        (self.after,) = self.launch(
            STORE,
            [*inputs, numbers(keys.shape[0]), self.after],
            self._constants,
            (-(-units // THREADS), 1, 1),
            THREADS,
            [((CONSTANT_SIZE,), mx.float32)],
        )

    def gather(self, rows: Rows, length: int, kept: dict[Any, Any]) -> tuple[mx.array, mx.array]:
        """Keys and values [R, KV, length, D] of the first positions of some rows; beyond a row's end is anything.

        `kept` is where indices are kept for the other layers.
        """
        key = ("gathered", rows.firsts, rows.lengths, length)
        if self.launch is None:
            key = (*key, self.heads)
            if key not in kept:
                kept[key] = _places_of(rows, length, self.heads)
            keys, values = (self._taken(pool, kept[key], length) for pool in self.arrays)
            return keys, values
        count = len(rows.firsts)
        if key not in kept:
            pairs = list(zip(rows.firsts, rows.lengths, strict=True))
            kept[key] = on_device([*pairs, *[(0, 0)] * (CONSTANT_SIZE // 2 - count)])
        words = self._keys.shape[2]
        made = ((count, self.heads, length, words), WORD)
        keys, values = self.launch(
            GATHER,
            [*self.memory, rows.table, kept[key], numbers(count, length), self.after],
            self._constants,
            (-(-count * self.heads * length * words // THREADS), 1, 1),
            THREADS,
            [made, made],
        )
        return keys.view(self.dtype), values.view(self.dtype)

    def _taken(self, pool: mx.array, places: int | mx.array, length: int) -> mx.array:
        """Keys or values [R, KV, length, D] from these places, or of one row from this slot on."""
        if isinstance(places, int):  # no copy
            return pool[places : places + length].swapaxes(0, 1)[None]
        return pool.reshape(-1, self.dim)[places]

    def grow(self, pages: int) -> None:
        """Make room for so many pages, once everything launched has run. Holds the keys, then the values, twice."""
        mx.eval(self.written)
        more = pages - self.pages
        self._hand_over([])
        self._keys = self._longer(self._keys, more)
        self._values = self._longer(self._values, more)
        self._hand_over(self.arrays)

    def _longer(self, pool: mx.array, pages: int) -> mx.array:
        longer = mx.concatenate([pool, self._zeros(pages)])
        mx.eval(longer)
        return longer

    @property
    def _constants(self) -> dict[str, int | bool | mx.Dtype]:
        return {"W": WORD, "HEADS": self.heads, "WORDS": self._keys.shape[2], "PAGE": PAGE}

    def _zeros(self, pages: int) -> mx.array:
        if self.launch is None:
            return mx.zeros((pages * PAGE, self.heads, self.dim), self.dtype)
        return mx.zeros((pages * PAGE, self.heads, self.dim * self.dtype.size // WORD.size), WORD)


def _places_of(rows: Rows, length: int, heads: int) -> int | mx.array:
    """Where the heads of the first positions of rows lie in a pool [R, KV, length], heads of all slots counted; behind
    a row's pages, in its last one again. The first slot, where there is one row and its pages follow each other.
    """
    count = pages_for(length)
    if len(rows.pages) == 1:
        own = rows.pages[0][:count]
        if list(own) == list(range(own[0], own[0] + count)):
            return own[0] * PAGE
    pages = mx.array([[*own[:count], *[own[-1]] * (count - len(own))] for own in rows.pages])
    slots = (pages[:, :, None] * PAGE + mx.arange(PAGE)).reshape(len(rows.pages), 1, -1)[..., :length]
    return slots * heads + mx.arange(heads)[:, None]
