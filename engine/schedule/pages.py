"""Which pages of the token pool are taken, and by how many: rows that begin alike share pages."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

FIRST = 64
"""Pages that there are before anybody asks for more."""


class Pages:
    """The pages of a pool, which grows as they are asked for. Knows no MLX.

    Args:
        most: pages that there can be.
    """

    def __init__(self, most: int):
        self._begin(most)

    @property
    def free(self) -> int:
        """Pages that nobody holds, those included that there could be."""
        return len(self._free) + self.most - self.count

    def allocate(self, count: int) -> list[int] | None:
        """So many free pages, now held by one; None if there are fewer."""
        if count > self.free:
            return None
        if count > len(self._free):
            self._grow(self.count + count - len(self._free))
        pages = [heappop(self._free) for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def spare(self, pages: Sequence[int]) -> bool:
        """Whether any of these pages would be free without one holder of them all."""
        return any(self._holders[page] == 1 for page in pages)

    def share(self, pages: Sequence[int]) -> None:
        """One more holds these pages."""
        for page in pages:
            self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One holder less; pages that nobody holds are free."""
        for page in pages:
            self._holders[page] -= 1
            if not self._holders[page]:
                heappush(self._free, page)

    def resize(self, most: int) -> None:
        """There can be so many from now on. Where that is less than there are, nobody may hold one: they begin anew."""
        if most < self.count:
            self._begin(most)
        self.most = most

    def _begin(self, most: int) -> None:
        self.most = most
        self.count = min(FIRST, most)
        self._free = list(range(self.count))  # a heap: pages of a row lie side by side where they can
        self._holders = [0] * self.count

    def _grow(self, least: int) -> None:
        """Twice as many pages, or as many as are asked for: each time the pool is copied."""
        count = min(self.most, max(2 * self.count, least))
        self._free.extend(range(self.count, count))
        heapify(self._free)
        self._holders.extend([0] * (count - self.count))
        self.count = count
