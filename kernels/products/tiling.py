"""How a product is shared out among threadgroups, simdgroups and lanes: what the race chooses from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from ..gpu.cores import wave
from .quantisation import Quantisation

BUSY = 16
"""Simdgroups that keep a core of the GPU busy: enough to hide the time that memory takes."""

Constants = Mapping[str, int | bool | mx.Dtype]


class Tiling(Protocol):
    """One way to share out a product."""

    @property
    def kernel(self) -> str:
        """The name of its kernel."""
        ...

    def fits(self, length: int, quantisation: Quantisation) -> bool:
        """Whether it can take a weight with lines of this length."""
        ...

    def rows(self, count: int) -> int:
        """How many of so many rows a simdgroup takes."""
        ...

    def splits(self, lines: int, tiles: int, dtype: mx.Dtype) -> int:
        """How many simdgroups share out the length of the same lines, of a product with so many tiles of rows."""
        ...

    def across(self, splits: int) -> int:
        """Lines that a threadgroup takes."""
        ...

    def threads(self, splits: int) -> int:
        """Threads of a threadgroup."""
        ...

    def constants(self, rows: int, dtype: mx.Dtype) -> Constants:
        """What only its kernel has to know."""
        ...


@dataclass(frozen=True)
class Lanes:
    """Products are added up lane by lane, on any GPU: a simdgroup takes so many lines, a lane so many words at a time.

    For few rows: what a product takes beside reading the weight grows with each of them.
    """

    lines: int
    words: int

    SIMDGROUPS = 4
    """Of a threadgroup."""

    ROWS = (2, 3, 4, 5, 6, 8)
    """Numbers of rows that it is compiled for; other ones take the next, for a row too many is work for nothing."""

    kernel = "quantized_matmul"

    def fits(self, length: int, quantisation: Quantisation) -> bool:
        return length * quantisation.bits % (32 * self.words) == 0

    def rows(self, count: int) -> int:
        return next((rows for rows in self.ROWS if count <= rows), self.ROWS[-1])

    def splits(self, lines: int, tiles: int, dtype: mx.Dtype) -> int:
        return _enough(-(-lines // self.lines) * tiles, 1, self.SIMDGROUPS)

    def across(self, splits: int) -> int:
        return self.SIMDGROUPS // splits * self.lines

    def threads(self, splits: int) -> int:
        return 32 * self.SIMDGROUPS

    def constants(self, rows: int, dtype: mx.Dtype) -> Constants:
        return {"LINES": self.lines, "ROWS": rows, "WORDS": self.words}


@dataclass(frozen=True)
class Matrices:
    """Products of simdgroup matrices, which only Metal has: eight rows cost as much as one.

    A simdgroup takes so many lines, a multiple of eight. It multiplies numbers of x's type, or `floats`. Weights are
    the matrices to the `left` or to the right. A lane reads the words that it holds the numbers of, so many at a time;
    `staged` weights go through threadgroup memory instead, and to the right.
    """

    lines: int
    words: int = 1
    left: bool = True
    floats: bool = False
    staged: bool = False

    kernel = "quantized_matmul_simdgroup"

    def fits(self, length: int, quantisation: Quantisation) -> bool:
        return length % (32 if self.staged else self.words * 256 // quantisation.bits) == 0

    def rows(self, count: int) -> int:
        most = (1024 if self.staged else 512) // self.lines  # for the sake of registers
        return min(-(-count // 8) * 8, most, 32)

    def splits(self, lines: int, tiles: int, dtype: mx.Dtype) -> int:
        most = 4 if self.staged and self._type(dtype) == mx.float32 else 8  # for the sake of threadgroup memory
        return _enough(-(-lines // self.lines) * tiles, 2, most)

    def across(self, splits: int) -> int:
        return self.lines

    def threads(self, splits: int) -> int:
        return 32 * splits

    def constants(self, rows: int, dtype: mx.Dtype) -> Constants:
        sizes = {"TILES": rows // 8, "WIDTH": self.lines // 8, "WORDS": self.words}
        return {"U": self._type(dtype), **sizes, "LEFT": self.left, "STAGED": self.staged}

    def _type(self, dtype: mx.Dtype) -> mx.Dtype:
        return mx.float32 if self.floats else dtype


def _enough(alone: int, least: int, most: int) -> int:
    """By how many simdgroups to share out each line, if there were so many simdgroups without: as few as fill the GPU.

    It is a power of two, so that few variants are compiled.
    """
    splits = least
    while splits < most and alone * splits < wave(BUSY):
        splits *= 2
    return splits


TILINGS: Mapping[str, Tiling] = {
    "kernel": Lanes(4, 1),
    "kernel, 2 words": Lanes(4, 2),
    "kernel, 4 words": Lanes(2, 4),
    "matrices": Matrices(16),
    "matrices, 2 words": Matrices(16, words=2),
    "matrices, 32 lines": Matrices(32),
    "matrices, floats": Matrices(16, floats=True),
    "matrices, right": Matrices(16, left=False),
    "matrices, staged": Matrices(32, left=False, staged=True),
}
"""By the names that they have as forms of a race."""

RACED: Mapping[int, tuple[str, ...]] = {
    4: ("kernel", "kernel, 2 words", "kernel, 4 words", "matrices"),
    8: ("kernel", "kernel, 4 words", "matrices", "matrices, 2 words", "matrices, floats"),
    16: ("kernel", "matrices", "matrices, 32 lines", "matrices, right", "matrices, staged"),
    32: ("kernel", "matrices", "matrices, 32 lines", "matrices, floats", "matrices, staged"),
    64: ("kernel", "matrices", "matrices, staged"),
}
"""The tilings that are raced for so many rows.

With few rows memory decides, so they differ in what lanes read side by side; with many the matrix units do, so they
differ in how large and of which type their matrices are, and in how they come by them.
"""

RACED_OF_EXPERTS: Mapping[int, tuple[str, ...]] = {
    16: ("kernel", "kernel, 2 words"),
    64: ("kernel", "matrices"),
}
"""Likewise for so many tokens through experts, each of which gets a few."""


def raced(names: tuple[str, ...], length: int, quantisation: Quantisation) -> dict[str, Tiling]:
    """Those of the tilings with these names that run here, with lines of this length."""
    tilings = {name: TILINGS[name] for name in names}
    return {
        name: tiling
        for name, tiling in tilings.items()
        if tiling.fits(length, quantisation) and (isinstance(tiling, Lanes) or mx.metal.is_available())
    }
