"""The memory of GatedDeltaNet layers: a state for each row, and the tape of steps not yet accepted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx

from ...kernels.operations import Operations
from ...kernels.race.contestants import RecurrentShape
from ...kernels.recurrent.gated_delta import Tape
from .row_memory import Memory, RowMemory


@dataclass(frozen=True)
class RecurrentLayers(RecurrentShape):
    """The recurrent layers of a model, and how many there are."""

    layers: int

    def bytes_per_row(self, taped: int) -> int:
        """Memory of one row whose tapes have so many steps."""
        heads, size = self.heads, self.dtype.size
        state = 4 * heads.values * heads.value_dim * heads.key_dim
        inputs = size * (self.looks - 1 + taped) * heads.channels
        step = size * heads.keys * heads.key_dim + 4 * heads.values * (heads.value_dim + 1)
        return self.layers * (state + inputs + taped * step)


class Recurrent(RowMemory):
    """The memory of all GatedDeltaNet layers: of each row a state [Hv, Dv, Dk] float32, and the steps of its tape."""

    def __init__(self, shape: RecurrentLayers, operations: Operations):
        self._shape, self._operations, self._heads = shape, operations, shape.heads
        super().__init__(shape.looks - 1)

    def nothing(self) -> list[Memory]:
        shape, heads = self._shape, self._heads
        state = mx.zeros((0, heads.values, heads.value_dim, heads.key_dim), mx.float32)
        inputs = mx.zeros((0, heads.channels), shape.dtype)
        keys = mx.zeros((0, heads.keys, heads.key_dim), shape.dtype)
        delta, decay = mx.zeros((0, heads.values, heads.value_dim)), mx.zeros((0, heads.values))
        return [Memory((state,), inputs, (keys, delta, decay)) for _ in range(shape.layers)]

    def convolve(self, layer: int, x: mx.array, weight: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values by `Operations.convolved_heads` of packed x [N, W] over the layer's inputs."""
        memory = self._layers[layer]
        q, k, v, inputs = self._operations.convolved_heads(x, weight, memory.inputs, self._steps, self._heads)
        self._layers[layer] = replace(memory, inputs=inputs)
        return q, k, v

    def update(self, layer: int, q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array) -> mx.array:
        """`Operations.gated_delta` over the layer's state and tape; evaluating the outputs evaluates what is left."""
        old = self._layers[layer]
        (state,), tape = old.seats, Tape(*old.steps)
        output, state, tape = self._operations.gated_delta(q, k, v, decay, beta, state, tape, self._steps)
        self._layers[layer] = memory = Memory((state,), old.inputs, (tape.k, tape.delta, tape.decay))
        return mx.depends([output], memory.arrays)[0]
