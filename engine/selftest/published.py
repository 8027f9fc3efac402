"""What the operations of some published models work on, in 4 bits and with their drafts.

A loaded model says the same of itself (`Transformer.shapes`), but first there must be memory for its weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ...kernels.fused.rotary import Layout
from ...kernels.products.quantisation import Quantisation
from ...kernels.race.contestants import (
    AttentionShape,
    ChoiceShape,
    ConvolutionShape,
    NormShape,
    OperationShape,
    ProductShape,
    RecurrentShape,
    RotaryShape,
)
from ...kernels.race.low_rank import LowRankShape
from ...kernels.recurrent.convolution import Heads

FOUR_BITS = Quantisation(64, 4)


@dataclass(frozen=True)
class Published:
    """A model. `hybrid` is the number of its key and value heads if it has recurrent layers as Qwen3.5 has them, and
    `looks` how many inputs its short convolutions look at if it has them as LFM2 does; `products` are length and lines
    of its quantised weights, joined where they run as one, but for those of experts. `heads`, of queries and of keys,
    and their size are those of its draft, and its own unless `hybrid` says otherwise.
    """

    hidden: int
    vocabulary: int
    products: tuple[tuple[int, int], ...]
    hybrid: int | None = None
    looks: int | None = None
    heads: tuple[int, int, int] = (32, 8, 128)

    def shapes(self, dtype: mx.Dtype) -> list[OperationShape]:
        """Its shapes, in this type."""
        found: list[OperationShape] = []
        if self.hybrid:
            found += attention(16, self.hybrid, 256, dtype, rotated=64, stride=512)
            found.append(RecurrentShape(Heads(keys=16, values=32, key_dim=128, value_dim=128), 4, dtype))
        if self.looks:
            found.append(ConvolutionShape(self.hidden, self.looks, dtype))
        found += attention(*self.heads, dtype, rotated=self.heads[-1])
        found += [NormShape(self.hidden, dtype), ChoiceShape(self.vocabulary, dtype)]
        found.append(LowRankShape(self.hidden, self.hidden, tuple(rank // 8 for rank in range(64)), dtype))
        found += [ProductShape(length, lines, FOUR_BITS, dtype) for length, lines in self.products]
        return [*found, ChoiceShape(self.vocabulary, mx.float32, most=16)]


def attention(
    heads: int, kv_heads: int, dim: int, dtype: mx.Dtype, rotated: int, stride: int = 0
) -> list[OperationShape]:
    """What attends, and what turns its queries and keys."""
    layout = Layout(heads, kv_heads, dim, rotated, epsilon=1e-6, stride=stride)
    return [AttentionShape(heads, kv_heads, dim, dtype), RotaryShape(layout, dtype)]


PUBLISHED = {
    "qwen3-4b": Published(2560, 151936, ((2560, 6144), (2560, 19456), (4096, 2560), (2560, 151936), (9728, 2560))),
    "qwen3.5-4b": Published(
        2560,
        248320,
        ((2560, 12352), (2560, 10240), (2560, 18432), (4096, 2560), (2560, 248320), (9216, 2560)),
        hybrid=4,
    ),
    "qwen3.5-35b-a3b": Published(2048, 248320, ((2048, 12352), (2048, 9216), (4096, 2048), (2048, 248320)), hybrid=2),
    "lfm2.5-1.2b": Published(
        2048,
        65536,
        ((2048, 6144), (2048, 3072), (2048, 2048), (2048, 16384), (2048, 65536), (8192, 2048)),
        looks=3,
        heads=(32, 8, 64),
    ),
}
"""The models whose kernels are compared, by the names of their pairs."""
