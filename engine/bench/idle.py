"""The share of wall time in which the device had nothing queued, from the outside.

MLX tells nobody when its device is idle. So the device is given something to do: after every round a filler is
queued, work of known duration w, rather longer than a round. While it runs the host has all the time it needs to
queue the next round, so the device never waits, and a filled round takes d + w, where d is the round's time on the
device alone. Without the filler a round takes t. The device had nothing queued for t - d of it:

    idle share = 1 - (filled round - w) / t

w is timed by itself, many fillers queued in a row. Rounds with and without filler take turns, so that a growing
context counts on both sides. What the kernels of a round leave idle between themselves is work queued, and counts as
busy. The figure is a difference of timings: it scatters by a few hundredths, and can fall below 0.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median

import mlx.core as mx

from .arms import Session, synchronize
from .measure import REFILL

PASSES = 8
"""Most operations of a filler: few, since MLX lets a host run only so many operations ahead of a CPU."""

LARGEST = 1 << 14


@dataclass
class Idle:
    """Idle shares by turn, with the seconds per round that they come from: without filler, with it, filler alone."""

    turns: list[tuple[float, float, float]] = field(default_factory=list)

    @property
    def shares(self) -> list[float]:
        return [1 - (filled - filler) / plain for plain, filled, filler in self.turns]

    @property
    def share(self) -> float:
        return median(self.shares)


class Filler:
    """Work for the device that lasts about `seconds`: a few matrix products, one after the other."""

    def __init__(self, seconds: float):
        self.passes, size = 1, 64
        while True:
            self.matrix = mx.full((size, size), 1 / size)  # its own square, so that nothing grows or fades
            mx.eval(self.matrix)
            if self.timed(4) > seconds / PASSES or size >= LARGEST:
                break
            size = size * 5 // 4
        self.passes = min(PASSES, max(1, round(seconds / self.timed())))

    def queue(self) -> mx.array:
        product = self.matrix
        for _ in range(self.passes):
            product = product @ self.matrix
        mx.async_eval(product)
        return product

    def timed(self, count: int = 16) -> float:
        """Seconds of one filler, of so many queued in a row."""
        self.queue()
        synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            self.queue()
        synchronize()
        return (time.perf_counter() - begin) / count


def measure_idle(session: Session, rounds: int = 16, repeats: int = 4) -> Idle:
    """Idle share of an engine that runs on the default stream, over so many rounds in each turn."""
    filler = Filler(1.5 * timed_rounds(session, rounds, None))
    idle = Idle()
    for repeat in range(repeats):
        first, second = (None, filler) if repeat % 2 == 0 else (filler, None)
        one = timed_rounds(session, rounds, first)
        other = timed_rounds(session, rounds, second)
        plain, filled = (one, other) if first is None else (other, one)
        idle.turns.append((plain, filled, filler.timed()))
    return idle


def timed_rounds(session: Session, rounds: int, filler: Filler | None) -> float:
    """Seconds per round."""
    begin = 0.0
    for number in range(REFILL + rounds):
        if number == REFILL:
            begin = time.perf_counter()
        session.advance()
        if filler:
            filler.queue()
    seconds = (time.perf_counter() - begin) / rounds
    synchronize()
    return seconds
