"""The memory of layers that are a short convolution: the last inputs of each row, those not yet accepted among them."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ...kernels.operations import Operations
from ...kernels.race.contestants import ConvolutionShape
from .row_memory import Memory, RowMemory


@dataclass(frozen=True)
class ConvolutionLayers(ConvolutionShape):
    """The short convolutions of a model, and how many layers of them there are."""

    layers: int

    def bytes_per_row(self, taped: int) -> int:
        """Memory of one row of which so many steps are not yet accepted."""
        return self.layers * self.dtype.size * self.channels * (self.looks - 1 + taped)


class ShortConvolutions(RowMemory):
    """The memory of all short convolutions. Inputs are all that it takes: there is no state and nothing to replay."""

    def __init__(self, shape: ConvolutionLayers, operations: Operations):
        self._shape, self._operations = shape, operations
        super().__init__(shape.looks - 1)

    def nothing(self) -> list[Memory]:
        shape = self._shape
        return [Memory((), mx.zeros((0, shape.channels), shape.dtype), ()) for _ in range(shape.layers)]

    def convolve(self, layer: int, x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
        """`Operations.gated_convolution` of packed x [N, 3 C] over the layer's inputs: [N, C].

        Evaluating the outputs evaluates what is left.
        """
        inputs = self._layers[layer].inputs
        output, inputs = self._operations.gated_convolution(x, weight, bias, inputs, self._steps)
        self._layers[layer] = Memory((), inputs, ())
        return mx.depends([output], [inputs])[0]
