"""Targets of which some layers do not attend, but keep a memory of their own for each row."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any

import mlx.core as mx

from ....kernels.products.low_rank import Chosen
from ...state.row_memory import RowMemory
from ...state.state import State
from .transformer import Pass, Transformer


class Hybrid(Transformer):
    """A forward whose layers are of two kinds."""

    def __init__(self, model: Any):
        super().__init__(model)
        recurrent = attending = 0
        self.kind_indices: list[int] = []  # of each layer, among the layers of its kind
        for layer in self.layers:
            recurs = self.recurs(layer)
            self.kind_indices.append(recurrent if recurs else attending)
            recurrent, attending = recurrent + recurs, attending + (not recurs)

    @abstractmethod
    def recurs(self, layer: Any) -> bool:
        """Whether a layer keeps a memory instead of attending."""

    @abstractmethod
    def make_memory(self) -> RowMemory:
        """The memory of layers that do not attend."""

    @abstractmethod
    def recur(self, index: int, place: int, layer: Any, x: mx.array, memory: Any, chosen: Chosen | None) -> mx.array:
        """The layer `index`, which keeps a memory, and whose place is `place` among those that do."""

    @cached_property
    def attending(self) -> list[int]:
        return [index for index, layer in enumerate(self.layers) if not self.recurs(layer)]

    @cached_property
    def recurrent_layers(self) -> int:
        """How many layers keep a memory."""
        return len(self.layers) - len(self.attending)

    def make_state(self, pages: int) -> State:
        return State(super().make_state(pages).pool, self.make_memory())

    def mix(self, index: int, layer: Any, x: mx.array, through: Pass) -> mx.array:
        place = self.kind_indices[index]
        if not self.recurs(layer):
            return self.attend(index, place, layer, x, through)
        return self.recur(index, place, layer, x, through.state.recurrent, through.chosen)
