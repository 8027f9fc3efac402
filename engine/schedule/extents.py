"""Which slots of the token pool belong to which row: contiguous extents out of a sorted free list."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Extent:
    """`length` token slots from `start` on."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


class ExtentAllocator:
    """First-fit allocation of contiguous extents; neighbouring free extents are always merged."""

    def __init__(self, slots: int):
        self.slots = slots
        self._free = [Extent(0, slots)]

    @property
    def free_slots(self) -> int:
        return sum(extent.length for extent in self._free)

    def allocate(self, length: int) -> Extent | None:
        """The first free extent of `length` slots, or None when no hole is large enough."""
        for index, hole in enumerate(self._free):
            if hole.length >= length:
                rest = Extent(hole.start + length, hole.length - length)
                self._free[index : index + 1] = [rest] if rest.length else []
                return Extent(hole.start, length)
        return None

    def release(self, extent: Extent) -> None:
        """Give an extent back."""
        insort(self._free, extent)
        merged: list[Extent] = []
        for hole in self._free:
            if merged and merged[-1].end == hole.start:
                merged[-1] = Extent(merged[-1].start, merged[-1].length + hole.length)
            else:
                merged.append(hole)
        self._free = merged

    def extend(self, extent: Extent, length: int) -> Extent | None:
        """The extent grown in place to `length` slots, or None when what follows it is taken."""
        missing = length - extent.length
        for index, hole in enumerate(self._free):
            if hole.start == extent.end and hole.length >= missing:
                rest = Extent(hole.start + missing, hole.length - missing)
                self._free[index : index + 1] = [rest] if rest.length else []
                return Extent(extent.start, length)
        return None
