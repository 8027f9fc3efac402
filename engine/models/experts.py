"""Quantised experts of mlx-lm's, through which tokens go in the way that is fastest on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU

from ...kernels.operations import Operations
from ...kernels.products.experts import Layer, Product
from ...kernels.race.experts import ExpertsShape
from ...kernels.race.keys import ExpertsKind
from .linear import quantisation, quantised


class Experts:
    """Stands where a block of mlx-lm's calls its `SwitchGLU`; `operations` gives those that the target has by then."""

    def __init__(self, glu: SwitchGLU, operations: Callable[[], Operations]):
        self.glu, self._operations = glu, operations
        self._kind = _kind(glu)

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        """Tokens x [N, K] through their experts `chosen` [N, E]: [N, E, K]."""
        return self._operations().experts(x, chosen, self._through, self._kind)

    def _through(self, x: mx.array, product: Product) -> mx.array:
        glu: Any = self.glu
        inside = glu.activation(product(x, _layer(glu.up_proj)), product(x, _layer(glu.gate_proj)))
        return product(inside, _layer(glu.down_proj))


def ordered(block: Any, operations: Callable[[], Operations]) -> Any:
    """A block of mlx-lm's whose quantised experts are `Experts`. It is a copy: the model stays as mlx-lm runs it."""
    found = {name: Experts(child, operations) for name, child in block.items() if _is_known(child)}
    if found:
        block = copy.copy(block)
        for name, experts in found.items():
            setattr(block, name, experts)
    return block


def expert_shapes(blocks: Iterable[Any], chosen: int, dtype: mx.Dtype) -> Iterator[ExpertsShape]:
    """The shapes of blocks' experts, each once, of which a token chooses so many."""
    experts = (it for block in blocks for it in vars(block).values() if isinstance(it, Experts))
    yield from dict.fromkeys(ExpertsShape(_kind(it.glu), chosen, dtype) for it in experts)


def _is_known(child: Any) -> bool:
    if type(child) is not SwitchGLU:
        return False
    layers: list[Any] = [child.gate_proj, child.up_proj, child.down_proj]
    if not all(isinstance(layer, QuantizedSwitchLinear) and layer.global_scale is None for layer in layers):
        return False
    return len({quantisation(layer) for layer in layers}) == 1


def _kind(glu: Any) -> ExpertsKind:
    up = glu.up_proj
    return ExpertsKind(up.input_dims, up.output_dims, up.num_experts, quantisation(up))


def _layer(layer: Any) -> Layer:
    return Layer(quantised(layer), layer.get("bias"))
