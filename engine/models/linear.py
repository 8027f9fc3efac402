"""Linear layers: those that read the same input joined into one, quantised products in the form that is best."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...kernels.operations import Operations
from ...kernels.products.quantisation import Quantisation, Weight
from ...kernels.race.contestants import ProductShape

ROWS = ("weight", "scales", "biases", "bias")
"""Arrays of a linear layer whose first dimension is its outputs."""


class Beside(nn.Module):
    """Layers that cannot be joined, because they are quantised differently: their outputs lie side by side."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = list(layers)


class Chosen:
    """Which LoRA adapter each token of a round has: `adapters` [N], -1 for none."""

    def __init__(self, adapters: mx.array):
        self.adapters = adapters
        self._masks: dict[tuple[int, ...], mx.array] = {}

    def mask(self, owners: tuple[int, ...]) -> mx.array:
        """Whether each of these adapters is the token's own [N, R]. Most layers of a round ask for the same ones."""
        if owners not in self._masks:
            self._masks[owners] = self.adapters[:, None] == mx.array(owners)
        return self._masks[owners]


@dataclass(frozen=True)
class Adapted:
    """A linear layer and what LoRA adapters add to its outputs: x A B of the token's own adapter.

    The A of all adapters lie side by side (`down` [K, R]), their B one below the other (`up` [R, O]); `owners` has the
    adapter of each of the R places between. So all rows of a round take two products with dense matrices, whichever
    adapters they have: what lies at the places of others is masked.
    """

    layer: Any
    down: mx.array
    up: mx.array
    owners: tuple[int, ...]

    def add(self, y: mx.array, x: mx.array, chosen: Chosen) -> mx.array:
        """The layer's outputs y [N, O] of x [N, K], and what the tokens' adapters add."""
        between = mx.where(chosen.mask(self.owners), x @ self.down, 0)
        return mx.addmm(y, between, self.up)


def join(layers: Sequence[nn.Module]) -> nn.Module:
    """One layer whose outputs are those of linear `layers`, one after the other: [N, K] -> [N, sum of outputs].

    The layers go on working: their arrays become views of the joint ones.
    """
    kinds = {
        (type(layer), *(getattr(layer, name, None) for name in ("bits", "group_size", "mode"))) for layer in layers
    }
    names = {tuple(name for name in ROWS if name in layer) for layer in layers}
    if len(kinds) > 1 or len(names) > 1 or not isinstance(layers[0], nn.Linear | nn.QuantizedLinear):
        return Beside(layers)
    joint = copy.copy(layers[0])
    for name in names.pop():
        joint[name] = mx.concatenate([layer[name] for layer in layers])
        mx.eval(joint[name])
        begin = 0
        for layer in layers:
            end = begin + layer[name].shape[0]
            layer[name] = joint[name][begin:end]
            mx.eval(layer[name])
            begin = end
    return joint


def apply(layer: Any, x: mx.array, operations: Operations, chosen: Chosen | None = None) -> mx.array:
    """A linear layer of rows x [N, K]: [N, O]. Without chosen adapters, it is the model's own."""
    if isinstance(layer, Adapted):
        y = apply(layer.layer, x, operations)
        return layer.add(y, x, chosen) if chosen else y
    if isinstance(layer, Beside):
        return mx.concatenate([apply(part, x, operations) for part in layer.layers], axis=-1)
    if not known(layer):
        return layer(x)
    y = product(layer, x, operations)
    return y + layer.bias if "bias" in layer else y


def parts(layer: Any) -> list[Any]:
    """The layers that what `join` made consists of, adapted or not."""
    if isinstance(layer, Adapted):
        return parts(layer.layer)
    return layer.layers if isinstance(layer, Beside) else [layer]


def width(layer: Any) -> int:
    """How many outputs a linear layer has."""
    return sum(part.weight.shape[0] for part in parts(layer))


def sizes(layer: Any) -> tuple[int, int]:
    """How many inputs and outputs a linear layer of mlx-lm's has, quantised or not."""
    outputs, inputs = layer.weight.shape
    packed = isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding)
    return inputs * 32 // layer.bits if packed else inputs, outputs


def product(layer: Any, x: mx.array, operations: Operations) -> mx.array:
    """Rows x [N, K] times the transpose of a quantised layer's or embedding's weight [O, K]: [N, O]."""
    return operations.quantized_matmul(x, quantised(layer))


def products(layers: Iterable[Any], dtype: mx.Dtype) -> Iterator[ProductShape]:
    """The quantised products of layers that the kernels know, each shape once."""
    shape = partial(ProductShape, dtype=dtype)
    yield from dict.fromkeys(
        shape(*sizes(layer), quantisation(layer)) for joint in layers for layer in parts(joint) if known(layer)
    )


def known(layer: nn.Module) -> bool:
    """Whether the kernels know a layer's quantisation."""
    return isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding) and quantisation(layer).known


def quantised(layer: Any) -> Weight:
    """The weight of a layer, or of all experts of one."""
    return Weight(layer.weight, layer.scales, layer.get("biases"), quantisation(layer))


def quantisation(layer: Any) -> Quantisation:
    """How a layer is quantised."""
    return Quantisation(layer.group_size, layer.bits, layer.mode)
