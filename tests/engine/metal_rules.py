"""A double of Metal's rules: what a round in flight reads is held until the round has been read.

On Metal a command buffer holds every input of its operations until it has completed, and an operation whose output
could take over the memory of its input copies it as long as that is held. Neither CUDA nor the CPU shows this.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from draftmill.engine.engine import Engine
from draftmill.engine.rounds import Round
from draftmill.engine.schedule.scheduler import Plan


class HeldEngine(Engine):
    """An engine whose pools are held while a round is in flight, and that notes which rounds have `copied` one."""

    def begin(self) -> HeldEngine:
        self.held: list[mx.array] = []
        self.copied: list[int] = []
        return self

    def _launch(self, plan: Plan) -> Round | None:
        self._grow()  # a larger pool is another one
        before = addresses(self)
        launched = super()._launch(plan)
        if addresses(self) != before:
            self.copied.append(self.stats.rounds)
        self.held = [array.flatten() for array in arrays(self)]  # not evaluated, so it holds what it is made from
        return launched

    def _read_in_flight(self, launched: Round | None) -> None:
        if launched is None:  # nothing runs any more once that is read
            self.held = []
        super()._read_in_flight(launched)


def arrays(engine: Engine) -> list[mx.array]:
    """Every pool of the engine."""
    return [array for pool in engine._pools for layer in pool.layers for array in layer.arrays]


def addresses(engine: Engine) -> list[int]:
    """Where every pool of the engine lies."""
    return [np.array(array, copy=False).ctypes.data for array in arrays(engine)]
