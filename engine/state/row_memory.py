"""What rows keep of layers that do not attend: where each row's memory lies from round to round, whatever it holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ...kernels.packing import Packing
from ...kernels.recurrent.plan import Place, Steps


@dataclass(frozen=True)
class Memory:
    """What some rows keep of one layer: states by seat [B, …], a convolution's inputs [P, C], taped steps [S, …]."""

    seats: tuple[mx.array, ...]
    inputs: mx.array
    steps: tuple[mx.array, ...]

    @property
    def arrays(self) -> list[mx.array]:
        return [*self.seats, self.inputs, *self.steps]

    def some(self, seats: mx.array, inputs: mx.array, steps: mx.array) -> Memory:
        """A copy of what has these indices."""
        return Memory(tuple(a[seats] for a in self.seats), self.inputs[inputs], tuple(a[steps] for a in self.steps))

    @staticmethod
    def joined(memories: Sequence[Memory]) -> Memory:
        """Memories of one layer, one after the other."""
        seats = zip(*(memory.seats for memory in memories), strict=True)
        steps = zip(*(memory.steps for memory in memories), strict=True)
        inputs = mx.concatenate([memory.inputs for memory in memories])
        return Memory(tuple(map(_joined, seats)), inputs, tuple(map(_joined, steps)))


def _joined(arrays: Sequence[mx.array]) -> mx.array:
    return mx.concatenate([*arrays])


@dataclass(frozen=True)
class Saved:
    """The memory of one row by itself, in each layer, with so many steps on its tape."""

    length: int
    layers: list[Memory]

    @property
    def arrays(self) -> list[mx.array]:
        return [array for memory in self.layers for array in memory.arrays]


class RowMemory(ABC):
    """The memory of all layers that do not attend, and of all rows.

    A round reads each row's memory once and leaves new memory, so nothing is written in place: the arrays that the
    last round left hold the rows that took part in it, seat by seat. A row that a round passes over is put on a
    shelf, by itself, until it comes back; a finished one lies there until its number is given to another.

    Args:
        window: how many inputs before its own a convolution looks at.
    """

    def __init__(self, window: int):
        self.window = window
        self.renew()

    @abstractmethod
    def nothing(self) -> list[Memory]:
        """The memory of no row, in each layer."""

    def renew(self) -> None:
        """Begin without any row; also after a round that failed: what it was to leave cannot be read."""
        self._layers = self.nothing()
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

    def taped(self, row: int) -> bool:
        """Whether the steps of the row's last round wait on its tape; else its states have taken them."""
        return self._places[row].length > 0

    def states(self, row: int) -> list[mx.array]:
        """The row's state in each layer that has one, as the last round left it."""
        return [array[self._places[row].seat] for memory in self._layers for array in memory.seats]

    def save(self, row: int) -> Saved:
        """A copy of what the last round left of a row. Until it is evaluated it holds all rows' memory."""
        place = self._places[row]
        inputs = mx.arange(place.inputs, place.inputs + self.window + place.length)
        tape = mx.arange(place.tape, place.tape + place.length)
        seat = mx.array([place.seat])
        return Saved(place.length, [memory.some(seat, inputs, tape) for memory in self._layers])

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
        seat, inputs, tape = self._steps.left
        for row, own in zip(rows, saved, strict=True):
            self._places[row] = Place(seat, inputs, tape, own.length)
            seat, inputs, tape = seat + 1, inputs + self.window + own.length, tape + own.length
        every = zip(self._layers, *(own.layers for own in saved), strict=True)
        self._layers = [Memory.joined(memories) for memories in every]
