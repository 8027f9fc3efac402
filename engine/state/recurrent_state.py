"""The memory of recurrent layers (GatedDeltaNet): a state for each row, and the tape of steps not yet accepted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import mlx.core as mx

from ...kernels.operations import Operations
from ...kernels.packing import Packing
from ...kernels.race.contestants import RecurrentShape
from ...kernels.recurrent.gated_delta import Tape
from ...kernels.recurrent.plan import Place, Steps


@dataclass(frozen=True)
class RecurrentLayers(RecurrentShape):
    """The recurrent layers of a model, and how many there are."""

    layers: int

    def bytes_per_row(self, taped: int) -> int:
        """Memory of one row whose tapes have so many steps."""
        heads, size = self.heads, self.dtype.size
        state = 4 * heads.values * heads.value_dim * heads.key_dim
        inputs = size * (self.looks - 1 + taped) * heads.channels
        step = size * heads.keys * heads.key_dim + 4 * heads.values * (heads.value_dim + 1)
        return self.layers * (state + inputs + taped * step)


@dataclass(frozen=True)
class Memory:
    """What some rows keep of one layer: `state` [B, Hv, Dv, Dk] float32, the convolution's `inputs` [P, C], `tape`."""

    state: mx.array
    inputs: mx.array
    tape: Tape

    @property
    def arrays(self) -> list[mx.array]:
        return [self.state, self.inputs, self.tape.k, self.tape.delta, self.tape.decay]

    @staticmethod
    def of(arrays: Iterable[mx.array]) -> Memory:
        state, inputs, *tape = arrays
        return Memory(state, inputs, Tape(*tape))


@dataclass(frozen=True)
class Saved:
    """The memory of one row by itself, in each layer, with so many steps on its tape."""

    length: int
    layers: list[Memory]

    @property
    def arrays(self) -> list[mx.array]:
        return [array for memory in self.layers for array in memory.arrays]


class Recurrent:
    """The memory of all recurrent layers and rows.

    A round reads each row's memory once and leaves new memory, so nothing is written in place: the arrays that the
    last round left hold the rows that took part in it, seat by seat. A row that a round passes over is put on a
    shelf, by itself, until it comes back; a finished one lies there until its number is given to another.
    """

    def __init__(self, shape: RecurrentLayers, operations: Operations):
        self.window = shape.looks - 1
        self._shape, self._operations, self._heads = shape, operations, shape.heads
        self.renew()

    def renew(self) -> None:
        """Begin without any row; also after a round that failed: what it was to leave cannot be read."""
        shape, heads = self._shape, self._heads
        state = mx.zeros((0, heads.values, heads.value_dim, heads.key_dim), mx.float32)
        inputs = mx.zeros((0, heads.channels), shape.dtype)
        keys = mx.zeros((0, heads.keys, heads.key_dim), shape.dtype)
        tape = Tape(keys, mx.zeros((0, heads.values, heads.value_dim)), mx.zeros((0, heads.values)))
        self._layers = [Memory(state, inputs, tape) for _ in range(shape.layers)]
        self._steps = Steps.of((), {}, None, self.window)
        self._places: dict[int, Place] = {}  # by row
        self._shelf: dict[int, Saved] = {}

    def begin(self, packing: Packing) -> None:
        """Start a round: gather its rows' memory, and see what steps they take."""
        rows = {span.row for span in packing.spans}
        for span in packing.spans:
            if span.fresh:
                self._places.pop(span.row, None)
                self._shelf.pop(span.row, None)
        self._put_away([row for row in self._places if row not in rows])
        self._take_out([row for row in self._shelf if row in rows])
        self._steps = Steps.of(packing.spans, self._places, packing.replay, self.window)
        self._places = dict(self._steps.places)

    def convolve(self, layer: int, x: mx.array, weight: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values by `Operations.convolved_heads` of packed x [N, W] over the layer's inputs."""
        memory = self._layers[layer]
        q, k, v, inputs = self._operations.convolved_heads(x, weight, memory.inputs, self._steps, self._heads)
        self._layers[layer] = replace(memory, inputs=inputs)
        return q, k, v

    def update(self, layer: int, q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array) -> mx.array:
        """`Operations.gated_delta` over the layer's state and tape; evaluating the outputs evaluates what is left."""
        old = self._layers[layer]
        output, state, tape = self._operations.gated_delta(q, k, v, decay, beta, old.state, old.tape, self._steps)
        self._layers[layer] = memory = Memory(state, old.inputs, tape)
        return mx.depends([output], memory.arrays)[0]

    def taped(self, row: int) -> bool:
        """Whether the steps of the row's last round wait on its tape; else its states have taken them."""
        return self._places[row].length > 0

    def states(self, row: int) -> list[mx.array]:
        """The row's state [Hv, Dv, Dk] in each layer, as the last round left it."""
        return [memory.state[self._places[row].seat] for memory in self._layers]

    def save(self, row: int) -> Saved:
        """A copy of what the last round left of a row. Until it is evaluated it holds all rows' memory."""
        place = self._places[row]
        inputs = mx.arange(place.inputs, place.inputs + self.window + place.length)
        tape = mx.arange(place.tape, place.tape + place.length)
        seat = mx.array([place.seat])
        return Saved(place.length, [Memory(m.state[seat], m.inputs[inputs], m.tape[tape]) for m in self._layers])

    def load(self, row: int, saved: Saved) -> None:
        """Let a row go on from there."""
        self._places.pop(row, None)
        self._shelf[row] = saved

    def _put_away(self, rows: list[int]) -> None:
        """Copy the memory of rows to the shelf."""
        for row in rows:
            self._shelf[row] = saved = self.save(row)
            del self._places[row]
            mx.async_eval(saved.arrays)

    def _take_out(self, rows: list[int]) -> None:
        """Put rows' memory behind that which the last round left."""
        if not rows:
            return
        saved = [self._shelf.pop(row) for row in rows]
        seat, inputs, tape = (array.shape[0] for array in self._layers[0].arrays[:3])
        for row, own in zip(rows, saved, strict=True):
            self._places[row] = Place(seat, inputs, tape, own.length)
            seat, inputs, tape = seat + 1, inputs + self.window + own.length, tape + own.length
        self._layers = [
            Memory.of(mx.concatenate([*parts]) for parts in zip(*(memory.arrays for memory in memories), strict=True))
            for memories in zip(self._layers, *(own.layers for own in saved), strict=True)
        ]
