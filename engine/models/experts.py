"""Experts of mlx-lm's: quantised ones in the way that is fastest on this machine, biased ones so that CUDA is right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import mlx.core as mx
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU, SwitchLinear

from ...kernels.operations import Operations
from ...kernels.products.experts import Layer, Product, experts
from ...kernels.race.experts import ExpertsShape
from ...kernels.race.keys import ExpertsKind
from .linear import quantisation, quantised


class BiasedExperts:
    """Stands where a block of mlx-lm's calls its `SwitchGLU`, if that has biases and a layer that is not quantised."""

    def __init__(self, glu: SwitchGLU):
        self.glu = glu

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        """Tokens x [N, K] through their experts `chosen` [N, E]: [N, E, K]."""
        return experts(x, chosen, partial(_through, self.glu))


class Experts:
    """Stands where a block of mlx-lm's calls its `SwitchGLU`; `operations` gives those that the target has by then."""

    def __init__(self, glu: SwitchGLU, operations: Callable[[], Operations]):
        self.glu, self._operations = glu, operations
        self._kind = _kind(glu)

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        """Tokens x [N, K] through their experts `chosen` [N, E]: [N, E, K]."""
        return self._operations().experts(x, chosen, partial(_through, self.glu), self._kind)


def ordered(block: Any, operations: Callable[[], Operations]) -> Any:
    """A block of mlx-lm's with experts of this module's. It is a copy: the model stays as mlx-lm runs it."""
    found: dict[str, Any] = {name: Experts(child, operations) for name, child in block.items() if _is_known(child)}
    found |= {name: BiasedExperts(child) for name, child in block.items() if _is_biased(child)}
    if found:
        block = copy.copy(block)
        for name, own in found.items():
            setattr(block, name, own)
    return block


def expert_shapes(blocks: Iterable[Any], chosen: int, dtype: mx.Dtype) -> Iterator[ExpertsShape]:
    """The shapes of blocks' experts, each once, of which a token chooses so many."""
    found = (it for block in blocks for it in vars(block).values() if isinstance(it, Experts))
    yield from dict.fromkeys(ExpertsShape(_kind(it.glu), chosen, dtype) for it in found)


def _is_known(child: Any) -> bool:
    if type(child) is not SwitchGLU:
        return False
    layers = _layers(child)
    return all(map(_is_quantised, layers)) and len({quantisation(layer) for layer in layers}) == 1


def _is_biased(child: Any) -> bool:
    if type(child) is not SwitchGLU:
        return False
    layers = _layers(child)
    plain = [isinstance(layer, SwitchLinear) for layer in layers]
    readable = all(is_plain or _is_quantised(layer) for layer, is_plain in zip(layers, plain, strict=True))
    return readable and any(plain) and any("bias" in layer for layer in layers)


def _is_quantised(layer: Any) -> bool:
    return isinstance(layer, QuantizedSwitchLinear) and layer.global_scale is None


def _layers(glu: Any) -> list[Any]:
    return [glu.gate_proj, glu.up_proj, glu.down_proj]


def _through(glu: Any, x: mx.array, product: Product) -> mx.array:
    inside = glu.activation(product(x, _layer(glu.up_proj)), product(x, _layer(glu.gate_proj)))
    return product(inside, _layer(glu.down_proj))


def _kind(glu: Any) -> ExpertsKind:
    up = glu.up_proj
    return ExpertsKind(up.input_dims, up.output_dims, up.num_experts, quantisation(up))


def _layer(layer: Any) -> Layer:
    weight = quantised(layer) if isinstance(layer, QuantizedSwitchLinear) else layer.weight
    return Layer(weight, layer.get("bias"))
