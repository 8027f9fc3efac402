"""Quantised linear layers whose product takes the form that is best for its number of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from ..kernels.heats import ProductShape
from ..kernels.operations import Operations

BITS, GROUPS = (4, 8), (32, 64)
"""Affine quantisations that the kernels know."""


class RoutedLinear(nn.Module):
    """A quantised linear layer of mlx-lm's, with `Operations.quantized_matmul` in place of its product."""

    def __init__(self, linear: nn.QuantizedLinear, operations: Operations):
        super().__init__()
        self.linear = linear
        self._operations = operations

    def __call__(self, x: mx.array) -> mx.array:
        y = product(x, self.linear, self._operations)
        return y + self.linear.bias if "bias" in self.linear else y


def product(x: mx.array, layer: nn.QuantizedLinear | nn.QuantizedEmbedding, operations: Operations) -> mx.array:
    """Rows x [N, K] times the transpose of a quantised layer's weight [O, K]: [N, O]."""
    weight, scales, biases = (layer[name] for name in ("weight", "scales", "biases"))
    return operations.quantized_matmul(x, weight, scales, biases, layer.group_size, layer.bits)


def route(model: nn.Module, operations: Operations) -> None:
    """Put routed layers in place of a model's quantised ones, those that the kernels know."""
    routed = tree_map(
        lambda layer: RoutedLinear(layer, operations) if known(layer) else layer,
        model.leaf_modules(),
        is_leaf=nn.Module.is_module,
    )
    model.update_modules(routed)


def products(model: nn.Module, dtype: mx.Dtype) -> Iterator[ProductShape]:
    """The quantised products of a model, each shape once."""
    leaves: Any = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    layers = [layer for _, layer in leaves if known(layer) or known_embedding(layer)]
    yield from dict.fromkeys(
        ProductShape(x.weight.shape[1] * 32 // x.bits, x.weight.shape[0], x.group_size, x.bits, dtype) for x in layers
    )


def known(layer: nn.Module) -> bool:
    """Whether a layer is a quantised linear one whose product our kernels know."""
    return isinstance(layer, nn.QuantizedLinear) and _affine(layer)


def known_embedding(layer: nn.Module) -> bool:
    """Likewise, of an embedding that may be used as a head."""
    return isinstance(layer, nn.QuantizedEmbedding) and _affine(layer)


def _affine(layer: nn.QuantizedLinear | nn.QuantizedEmbedding) -> bool:
    return layer.mode == "affine" and layer.bits in BITS and layer.group_size in GROUPS
