"""Linear layers: those that read the same input joined into one, quantised products in the form that is best."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...kernels.operations import Operations
from ...kernels.products.low_rank import Chosen, LowRank
from ...kernels.products.quantisation import Quantisation, Weight
from ...kernels.race.contestants import ProductShape
from ...kernels.race.low_rank import LowRankShape

ROWS = ("weight", "scales", "biases", "bias")
"""Arrays of a linear layer whose first dimension is its outputs."""


class Beside(nn.Module):
    """Layers that cannot be joined, because they are quantised differently: their outputs lie side by side."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = list(layers)


@dataclass(frozen=True)
class Dense:
    """A linear layer that is not quantised: the transpose of its weight [K, O], and its bias."""

    transposed: mx.array
    bias: mx.array | None


@dataclass(frozen=True)
class Quantised:
    """A quantised linear layer that the kernels know, as their operations take it."""

    weight: Weight
    bias: mx.array | None


@dataclass(frozen=True)
class Adapted:
    """A linear layer and what LoRA adapters add to its outputs."""

    layer: Any
    adapters: LowRank


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


def bound(layer: Any) -> Any:
    """A linear layer of mlx-lm's in the form in which it runs, as long as its arrays stay the same. To look these up
    and to transpose them in each call would cost the host as much as building the call does.
    """
    if isinstance(layer, Beside):
        return Beside([bound(part) for part in layer.layers])
    if type(layer) is nn.Linear:
        transposed = layer.weight.T
        mx.eval(transposed)  # a view
        return Dense(transposed, layer.get("bias"))
    return Quantised(quantised(layer), layer.get("bias")) if known(layer) else layer


def apply(layer: Any, x: mx.array, operations: Operations, chosen: Chosen | None = None) -> mx.array:
    """A linear layer of rows x [N, K], bound or not: [N, O]. Without chosen adapters, it is the model's own."""
    if isinstance(layer, Dense):
        return x @ layer.transposed if layer.bias is None else mx.addmm(layer.bias, x, layer.transposed)
    if isinstance(layer, Quantised):
        y = operations.quantized_matmul(x, layer.weight)
        return y if layer.bias is None else y + layer.bias
    if isinstance(layer, Adapted):
        y = apply(layer.layer, x, operations)
        return operations.add_low_rank(y, x, layer.adapters, chosen) if chosen else y
    if isinstance(layer, Beside):
        return mx.concatenate([apply(part, x, operations) for part in layer.layers], axis=-1)
    return apply(bound(layer), x, operations) if known(layer) else layer(x)


def parts(layer: Any) -> list[Any]:
    """The layers that what `join` made consists of, bound and adapted or not."""
    if isinstance(layer, Adapted):
        return parts(layer.layer)
    return layer.layers if isinstance(layer, Beside) else [layer]


def width(layer: Any) -> int:
    """How many outputs a linear layer has."""
    return sum(sizes(part)[1] for part in parts(layer))


def sizes(layer: Any) -> tuple[int, int]:
    """How many inputs and outputs a linear layer has, quantised or not, bound or not."""
    if isinstance(layer, Dense):
        inputs, outputs = layer.transposed.shape
        return inputs, outputs
    if isinstance(layer, Quantised):
        packed, *_, quantisation = layer.weight
        return packed.shape[1] * 32 // quantisation.bits, layer.weight.lines
    outputs, inputs = layer.weight.shape
    packed = isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding)
    return inputs * 32 // layer.bits if packed else inputs, outputs


def product(layer: Any, x: mx.array, operations: Operations) -> mx.array:
    """Rows x [N, K] times the transpose of a quantised layer's or embedding's weight [O, K]: [N, O]."""
    return operations.quantized_matmul(x, quantised(layer))


def products(layers: Iterable[Any], dtype: mx.Dtype) -> Iterator[ProductShape]:
    """The quantised products of layers that the kernels know, each shape once."""
    each = (bound(part) if known(part) else part for layer in layers for part in parts(layer))
    shapes = (ProductShape(*sizes(it), it.weight.quantisation, dtype) for it in each if isinstance(it, Quantised))
    yield from dict.fromkeys(shapes)


def low_rank_shapes(layers: Iterable[Any], dtype: mx.Dtype) -> Iterator[LowRankShape]:
    """The adapters of layers, each shape once."""
    each = (layer for layer in layers if isinstance(layer, Adapted))
    yield from dict.fromkeys(LowRankShape(sizes(parts(it)[0])[0], width(it), it.adapters.owners, dtype) for it in each)


def known(layer: nn.Module) -> bool:
    """Whether the kernels know a layer's quantisation."""
    return isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding) and quantisation(layer).known


def quantised(layer: Any) -> Weight:
    """The weight of a layer, or of all experts of one."""
    return Weight(layer.weight, layer.scales, layer.get("biases"), quantisation(layer))


def quantisation(layer: Any) -> Quantisation:
    """How a layer is quantised."""
    return Quantisation(layer.group_size, layer.bits, layer.mode)
