"""How recurrent layers walk through a round: where each row's memory lies, and which tokens step together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import mlx.core as mx

from ..gpu.launch import numbers, on_device
from ..packing import Span


@dataclass(frozen=True)
class Place:
    """Where a row's memory lies in the arrays of a recurrent layer.

    `seat` is its state's index. At `inputs` begin the last inputs of the convolution that are certain, followed by
    those of its tape; at `tape` begin the `length` steps of its tape.
    """

    seat: int
    inputs: int
    tape: int
    length: int


NOWHERE = Place(-1, 0, 0, 0)
"""The place of a fresh row, whose memory is zero."""


@dataclass(frozen=True)
class Steps:
    """The steps of a round, for layers whose convolution looks back over `window` inputs.

    A span's index among `seats`, longest first, is the seat that its row's state takes. `origins` say where each
    row's memory comes from, `replay` [B] int32 how many steps of its tape were accepted.
    """

    seats: tuple[Span, ...]
    origins: tuple[Place, ...]
    replay: mx.array
    window: int

    @staticmethod
    def of(spans: Sequence[Span], places: dict[int, Place], replay: mx.array | None, window: int) -> Steps:
        """The steps of packed `spans`, given the places of their rows (by `Span.row`) and the packing's `replay`.

        What `replay` says of a row without a tape (fresh, or its last span was final) does not matter.
        """
        order = sorted(range(len(spans)), key=lambda index: -spans[index].count)
        seats = tuple(spans[index] for index in order)
        origins = tuple(NOWHERE if span.fresh else places[span.row] for span in seats)
        lengths = mx.array([place.length for place in origins], mx.int32)
        accepted = mx.zeros_like(lengths) if replay is None else mx.minimum(replay[mx.array(order)], lengths)
        return Steps(seats, origins, accepted, window)

    @cached_property
    def table(self) -> mx.array:
        """Seats as a kernel reads them [B, 9] int32.

        Of the span: query, count, final; of its origin: seat, inputs, tape, length; of what it leaves: inputs, tape.
        """
        rows = [
            [
                s.query,
                s.count,
                s.final,
                o.seat,
                o.inputs,
                o.tape,
                o.length,
                self.places[s.row].inputs,
                self.places[s.row].tape,
            ]
            for s, o in zip(self.seats, self.origins, strict=True)
        ]
        return on_device(rows)

    @cached_property
    def places(self) -> dict[int, Place]:
        """Where the memory of the round's rows lies after it."""
        places: dict[int, Place] = {}
        inputs = tape = 0
        for seat, span in enumerate(self.seats):
            length = 0 if span.final else span.count
            places[span.row] = Place(seat, inputs, tape, length)
            inputs, tape = inputs + self.window + length, tape + length
        return places

    @property
    def left(self) -> tuple[int, int, int]:
        """How many seats, inputs and taped steps the round leaves."""
        taped = sum(span.count for span in self.seats if not span.final)
        return len(self.seats), len(self.seats) * self.window + taped, taped

    @cached_property
    def active(self) -> list[int]:
        """How many seats, the first ones, take a step at each time."""
        return [sum(span.count > t for span in self.seats) for t in range(self.seats[0].count)]

    @cached_property
    def runs(self) -> list[tuple[int, int, int, bool]]:
        """Neighbouring seats of one kind: first seat, end, count of steps, final."""
        runs: list[tuple[int, int, int, bool]] = []
        first = 0
        for (count, final), group in groupby(self.seats, key=lambda span: (span.count, span.final)):
            end = first + len(list(group))
            runs.append((first, end, count, final))
            first = end
        return runs

    @cached_property
    def by_time(self) -> mx.array:
        """Packed tokens in the order of their steps [N]: all at time 0, then all at time 1, and so on."""
        return mx.array([span.query + t for t, count in enumerate(self.active) for span in self.seats[:count]])

    @cached_property
    def by_token(self) -> mx.array:
        """The inverse of `by_time` [N]."""
        return mx.argsort(self.by_time)

    @cached_property
    def taped(self) -> mx.array | None:
        """Packed tokens that go to the tape, by seat and time [M]; None where they are all, as they are packed."""
        tokens = [span.query + t for span in self.seats if not span.final for t in range(span.count)]
        everything = tokens == list(range(sum(span.count for span in self.seats)))
        return None if everything else mx.array(tokens, mx.int32)

    @cached_property
    def past(self) -> mx.array:
        """The inputs in each row's window, as indices of what the last rounds left [B, window]; 0 for fresh rows."""
        starts = mx.array([place.inputs for place in self.origins]) + self.replay
        return starts[:, None] + mx.arange(self.window)

    @cached_property
    def looks(self) -> mx.array:
        """What each packed token's convolution looks at, itself last [N, window + 1].

        Indices of the rows' windows [B * window], one after the other, followed by the round's own inputs [N].
        """
        ordered = sorted(zip(self.seats, self._sequences, strict=True), key=lambda pair: pair[0].query)
        windows = [seq[t : t + self.window + 1] for span, seq in ordered for t in range(span.count)]
        return on_device(windows)

    @cached_property
    def kept(self) -> mx.array:
        """The inputs that the round leaves, by seat; indices as in `looks`."""
        pairs = zip(self.seats, self._sequences, strict=True)
        return on_device([i for span, seq in pairs for i in (seq[span.count :] if span.final else seq)])

    @cached_property
    def sizes(self) -> mx.array:
        """How many tokens and how many seats there are, for kernels."""
        return numbers(sum(span.count for span in self.seats), len(self.seats))

    @cached_property
    def accepted(self) -> mx.array:
        """`replay` for kernels [B + 8]: as long as `launch.numbers`, for the same reason."""
        return mx.pad(self.replay, (0, 8))

    @cached_property
    def _sequences(self) -> list[list[int]]:
        """Each seat's window and inputs, in the order of time; indices as in `looks`."""
        own = len(self.seats) * self.window
        return [
            [*range(seat * self.window, (seat + 1) * self.window), *range(own + s.query, own + s.query + s.count)]
            for seat, s in enumerate(self.seats)
        ]
