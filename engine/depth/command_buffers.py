"""How long one of Metal's command buffers keeps the GPU, and how large a round may be for that. Knows no MLX.

While a display is on, macOS ends the work of a program whose command buffer keeps the GPU from drawing for too long.
MLX puts up to so many launches into a buffer, so one holds some layers of a round, and a round that takes seconds by
the cost model is cut into parts. How long each part takes follows from which layers it can hold at most.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from .round_cost import Cost

SECONDS = 0.5
"""Longest that a command buffer may take unless an operator says otherwise: what others lost took a second and more."""

LAUNCHES, ELEMENTS = 40, 40
"""Launches, and millions of elements of their inputs, after which MLX ends a command buffer on a base or Pro chip. Max
and Ultra chips have 50 of each; with less, buffers end sooner. It is set for all, so that parts are known.
"""

UNSET = 50
"""Launches of a buffer, at most, where nobody has set them."""

LEAST_LAUNCHES = 8
"""Of a layer: norms, projections, rotation, attention and MLP are more, in every family and every form of kernels."""

LEAST_CHUNK = 8
"""Tokens of a prompt in a round that has room for no more: it must go on."""


def launches() -> int:
    """After how many launches MLX ends a command buffer in this process."""
    return int(os.environ.get("MLX_MAX_OPS_PER_BUFFER", UNSET))


def environment(aborts: int = 0) -> dict[str, str]:
    """What MLX must find when it is loaded. With each of a worker's `aborts` a buffer holds half as many launches."""
    held = max(LEAST_LAUNCHES, LAUNCHES >> aborts)
    return {"MLX_MAX_OPS_PER_BUFFER": str(held), "MLX_MAX_MB_PER_BUFFER": str(ELEMENTS)}


@dataclass(frozen=True)
class Parts:
    """What one command buffer can hold of a round at most.

    Args:
        layers: of the model.
        attending: how many of them attend; these lie evenly among them.
        launches: after which a buffer ends.
    """

    layers: int
    attending: int
    launches: int = LAUNCHES

    @property
    def held(self) -> int:
        """Layers that a buffer can hold, cut ones at both ends included."""
        return min(self.layers, self.launches // LEAST_LAUNCHES + 2)

    @property
    def of_layers(self) -> float:
        return self.held / self.layers

    @property
    def of_attention(self) -> float:
        return ceil(self.held * self.attending / self.layers) / self.attending if self.attending else 0.0


class Bound:
    """Keeps command buffers below so many seconds, as far as the cost model knows.

    Args:
        cost: predicted seconds of rounds on this machine.
        parts: what a buffer can hold of a round.
        seconds: longest that a buffer may take.
        most: tokens of prompts in a round at most.
        pace: how many times as long as predicted rounds take now.
    """

    def __init__(
        self, cost: Cost, parts: Parts, seconds: float, most: int, pace: Callable[[], float] = lambda: 1.0
    ) -> None:
        self.cost, self.parts, self.seconds, self.most = cost, parts, seconds, most
        self._pace = pace
        self._room: BufferRoom | None = None

    def buffer(self, tokens: int, rows: int, context: int, pairs: int) -> float:
        """Seconds of the longest command buffer of a round: of packed tokens, rows, tokens of context summed over rows,
        and pairs of a token and one of its row's context.
        """
        curve = self.cost.round
        layers = self.cost.rounds(tokens)[tokens] + curve.per_row * rows
        attention = curve.per_context * context + curve.per_pair * pairs
        return max(1.0, self._pace()) * (self.parts.of_layers * layers + self.parts.of_attention * attention)

    def room(self, contexts: Sequence[int]) -> BufferRoom:
        """What a round has room for in which rows decode with so many tokens behind each."""
        self._room = BufferRoom(self, contexts)
        return self._room

    def drafts(self, most: int) -> int:
        """How many drafted tokens, `most` at most, the round still takes for which `room` was asked last."""
        return self._room.drafts(most) if self._room else most

    def cut(self, depths: Sequence[int]) -> list[int]:
        """Depths that this round takes."""
        return shallower(depths, self.drafts(sum(depths)))


class BufferRoom:
    """A round that fills up. It decodes without drafts at first; chunks come next, and drafts take what is left."""

    def __init__(self, bound: Bound, contexts: Sequence[int]) -> None:
        self._bound = bound
        self.tokens = self.rows = len(contexts)
        self.context = self.pairs = sum(contexts)
        self._prompt = 0

    @property
    def left(self) -> bool:
        """An empty round has room for one whatever it takes."""
        return not self.tokens or (self._prompt < self._bound.most and self._fits(LEAST_CHUNK, 1, 0))

    def take(self, first: int, wanted: int) -> int:
        """At least a few tokens: a prompt must come to its end whatever else is in the round."""
        wanted = min(wanted, self._bound.most - self._prompt)
        taken = _largest(wanted, lambda count: self._fits(count, 1, first + count))
        if taken < wanted:
            taken -= taken % LEAST_CHUNK  # kernels work in tiles
        taken = max(taken, min(wanted, LEAST_CHUNK))
        if taken > 0:
            self._prompt += taken
            self.tokens, self.rows = self.tokens + taken, self.rows + 1
            self.context += first + taken
            self.pairs += taken * (first + taken)
        return taken

    def drafts(self, most: int) -> int:
        """How many drafted tokens fit, `most` at most."""
        return _largest(most, lambda count: self._fits(count, 0, self._behind))

    def draft(self, tokens: int) -> None:
        self.tokens += tokens
        self.pairs += tokens * self._behind

    @property
    def _behind(self) -> int:
        """Of a row on average."""
        return self.context // max(1, self.rows)

    def _fits(self, tokens: int, rows: int, context: int) -> bool:
        """Whether there is room for so many more tokens of a row with such a context; rows if it is another one."""
        seconds = self._bound.buffer(
            self.tokens + tokens, self.rows + rows, self.context + rows * context, self.pairs + tokens * context
        )
        return seconds <= self._bound.seconds


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, if all smaller ones do; 0 if none does."""
    low, high = 0, max(0, most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def shallower(depths: Sequence[int], most: int) -> list[int]:
    """The same depths, the deepest of them cut until they have so many tokens in all."""
    level = _largest(max(depths, default=0), lambda limit: sum(min(depth, limit) for depth in depths) <= most)
    return [min(depth, level) for depth in depths]


class TimedChunks:
    """Sizes of chunks for an engine without a cost model, from what the last ones took.

    Args:
        parts: what a buffer can hold of a pass.
        seconds: longest that a buffer may take.
        most: tokens of a chunk at most.
    """

    FIRST = 64
    FILL = 0.85  # of the bound, because what lies behind a chunk grows

    def __init__(self, parts: Parts, seconds: float, most: int) -> None:
        self._passes, self._most = self.FILL * seconds / parts.of_layers, most
        self.tokens = min(self.FIRST, most)

    def took(self, tokens: int, seconds: float) -> None:
        """A chunk of so many tokens took so long."""
        fits = int(tokens * self._passes / max(seconds, 1e-6))
        self.tokens = max(LEAST_CHUNK, min(fits, 2 * self.tokens, self._most))
