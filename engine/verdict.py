"""What the load check found about a target on this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """How far the engine's logits are from mlx-lm's: the distance between them, through the length of mlx-lm's.

    Attributes:
        error: the largest, where it was found (`where`).
        excused: the largest that this type of number excuses; or this model, if the error is larger than that.
        dropped: operations that were wrong and run as stock MLX instead.
    """

    error: float
    where: str
    excused: float
    dropped: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return self.error <= self.excused  # not so where it is NaN

    def __str__(self) -> str:
        line = f"logits off by {self.error:.1e}, {self.excused:.1e} is excused"
        return line + (f"; wrong here, so stock MLX runs: {', '.join(self.dropped)}" if self.dropped else "")
