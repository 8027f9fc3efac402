"""How weights are quantised: in which of MLX's modes, and which of them the kernels know."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

AFFINE = "affine"

KNOWN = {(AFFINE, bits, group) for bits in (4, 8) for group in (32, 64, 128)} | {
    ("mxfp4", 4, 32),
    ("mxfp8", 8, 32),
    ("nvfp4", 4, 16),
}
"""Mode, bits and group of what the kernels unpack."""

NUMBERS = {AFFINE: 0, "mxfp4": 1, "mxfp8": 1, "nvfp4": 2}
"""What kernels call a mode."""


class Quantisation(NamedTuple):
    """Weights of so many bits, of which a group shares a scale, and in the affine mode a bias."""

    group_size: int
    bits: int
    mode: str = AFFINE

    @property
    def known(self) -> bool:
        """Whether the kernels unpack it."""
        return (self.mode, self.bits, self.group_size) in KNOWN


class Weight(NamedTuple):
    """A quantised weight: packed words [..., O, K * bits / 32] uint32, scales [..., O, K / group] and biases like them.

    Only the affine mode has biases; in the others scales are bytes.
    """

    packed: mx.array
    scales: mx.array
    biases: mx.array | None
    quantisation: Quantisation

    @property
    def lines(self) -> int:
        """How many outputs it gives (O)."""
        return self.packed.shape[-2]

    def of_experts(self, count: int) -> Weight:
        """The same [count, O / count, ...]: the lines of so many experts, which lie one below the other."""

        def parted(lines: mx.array) -> mx.array:
            return lines.reshape(count, -1, lines.shape[-1])

        biases = None if self.biases is None else parted(self.biases)
        return Weight(parted(self.packed), parted(self.scales), biases, self.quantisation)
