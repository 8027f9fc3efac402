"""What LoRA adapters add to a linear layer's outputs, where each token of a round has an adapter of its own or none.

Hu et al. 2021 (https://arxiv.org/abs/2106.09685): a linear layer of x gives x A B more, A and B being thin.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import mlx.core as mx

from ..gpu.launch import TYPES, numbers, on_gpu
from ..gpu.source import Launch, read_kernels

SOURCE = Path(__file__).with_suffix(".metal")
KERNEL = read_kernels(SOURCE)["add_low_rank"]
THREADS = 256

SPAN = 1024
"""Outputs of a threadgroup: with fewer, more of them would compute what lies between A and B."""

ROOM = 256
"""Ranks of one adapter in a layer, joint projections together, for which the kernel has room."""


@dataclass(frozen=True)
class LowRank:
    """The adapters of a linear layer [K] -> [O]: the A of all, transposed, one below the other (`down` [R, K]), their B
    likewise (`up` [R, O]), and which adapter each of the R ranks belongs to, in ascending order.
    """

    down: mx.array
    up: mx.array
    owners: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many adapters there are up to the last one that has ranks here."""
        return self.owners[-1] + 1

    @cached_property
    def most(self) -> int:
        """The ranks of the adapter that has most."""
        return max(Counter(self.owners).values())

    @cached_property
    def begins(self) -> mx.array:
        """Where the ranks of each of them begin, and where the last one's end."""
        ranks = Counter(self.owners)
        return numbers(*accumulate((ranks[adapter] for adapter in range(self.count)), initial=0))


class Chosen:
    """Which LoRA adapter each token of a round has: `adapters` [N] int32, -1 for none."""

    def __init__(self, adapters: mx.array):
        self.adapters = adapters
        self._masks: dict[tuple[int, ...], mx.array] = {}

    def mask(self, owners: tuple[int, ...]) -> mx.array:
        """Whether each of these ranks is of the token's own adapter [N, R]. Most layers of a round ask for the same."""
        if owners not in self._masks:
            self._masks[owners] = self.adapters[:, None] == mx.array(owners)
        return self._masks[owners]


def fits(x: mx.array, layer: LowRank) -> bool:
    """Whether the kernel is made for such tokens [N, K] and adapters."""
    return x.shape[1] % 4 == 0 and x.dtype in TYPES and layer.most <= ROOM


def add_low_rank(y: mx.array, x: mx.array, layer: LowRank, chosen: Chosen) -> mx.array:
    """The layer's own outputs y [N, O] of x [N, K], and what the tokens' adapters add. The plain-MLX reference.

    All rows of a round take two dense products, whichever adapters they have: what belongs to others is masked.
    """
    between = mx.where(chosen.mask(layer.owners), x @ layer.down.T, 0)
    return mx.addmm(y, between, layer.up)


def add_low_rank_by_kernel(
    y: mx.array, x: mx.array, layer: LowRank, chosen: Chosen, launch: Launch = on_gpu
) -> mx.array:
    """As `add_low_rank`, of what `fits`: one launch instead of three. Made for rounds: in a prompt's chunk many tokens
    have the same adapter, and dense products read it once for all.
    """
    tokens, length = x.shape
    lines = y.shape[1]
    (outputs,) = launch(
        KERNEL,
        [y, x, layer.down, layer.up, chosen.adapters, layer.begins, numbers(length, lines, layer.count)],
        {"T": x.dtype, "ROOM": ROOM, "SPAN": SPAN, "THREADS": THREADS},
        (-(-lines // SPAN), tokens, 1),
        THREADS,
        [(y.shape, y.dtype)],
    )
    return outputs
